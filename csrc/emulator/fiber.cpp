// All .cpp files of emulator/ are built without ThreadSanitizer, because it would take the emulator's own memory
// accesses for the kernels'. The sanitizers' functions are weak symbols: null if no sanitizer is linked.
#include "emulator/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if !defined(__x86_64__)
#define FASTLM_UCONTEXT
#endif

#if defined(FASTLM_UCONTEXT)
#include <ucontext.h>
#endif

extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** fake_stack, const void* low, size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* fake_stack, const void** low, size_t* size);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* at, size_t size);
__attribute__((weak)) void* __tsan_get_current_fiber();
__attribute__((weak)) void* __tsan_create_fiber(unsigned flags);
__attribute__((weak)) void __tsan_destroy_fiber(void* fiber);
__attribute__((weak)) void __tsan_switch_to_fiber(void* fiber, unsigned flags);
__attribute__((weak)) void __tsan_acquire(void* at);
__attribute__((weak)) void __tsan_release(void* at);
}

namespace fastlm::emulator {

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kStack = 256 * 1024;       // untouched pages cost nothing
constexpr size_t kStagger = 5 * 64;         // neighbouring threads' stacks are offset by five cache lines
constexpr unsigned kNoSynchronisation = 1;  // tells ThreadSanitizer that a switch orders no memory

Fiber* running = nullptr;
Fiber* previous = nullptr;

}  // namespace

#if defined(FASTLM_UCONTEXT)
namespace {

void* first_context(char* low, char* top, void (*entry)()) {
  auto* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = low;
  context->uc_stack.ss_size = top - low;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}

void switch_contexts(void** from, void* to) {
  if (*from == nullptr) *from = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(*from), static_cast<ucontext_t*>(to));
}

void free_context(void* context) { delete static_cast<ucontext_t*>(context); }

}  // namespace
#else
// Pushes the registers that a call preserves, stores the stack pointer in *from, loads it from `to`, and pops them.
extern "C" void fastlm_switch_contexts(void** from, void* to);
asm(R"(
  .text
  .p2align 4
  .local fastlm_switch_contexts
  .type fastlm_switch_contexts, @function
fastlm_switch_contexts:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size fastlm_switch_contexts, .-fastlm_switch_contexts
)");

namespace {

void* first_context(char*, char* top, void (*entry)()) {
  // From low to high addresses: six registers, the return address, and the null that ends a backtrace.
  auto* frame = reinterpret_cast<void**>(top) - 8;
  frame[6] = reinterpret_cast<void*>(entry);
  return frame;
}

void switch_contexts(void** from, void* to) { fastlm_switch_contexts(from, to); }

void free_context(void*) {}

}  // namespace
#endif

Fiber::Fiber() {
  if (__tsan_get_current_fiber) tsan_ = __tsan_get_current_fiber();
}

Fiber::Fiber(void (*entry)(), int index) : entry_(entry), size_(kStack) {
  void* memory = mmap(nullptr, kPage + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
  mprotect(memory_, kPage, PROT_NONE);
  low_ = memory_ + kPage;
  char* top = memory_ + kPage + kStack - index * kStagger % kPage;
  context_ = first_context(memory_ + kPage, top, start);
  if (__tsan_create_fiber) tsan_ = __tsan_create_fiber(0);
}

Fiber::~Fiber() {
  if (memory_ == nullptr) return;
  // If an error stopped the fiber in a kernel, AddressSanitizer's red zones of its frames are still on the stack.
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(memory_, kPage + kStack);
  if (__tsan_destroy_fiber) __tsan_destroy_fiber(tsan_);
  free_context(context_);
  munmap(memory_, kPage + kStack);
}

Fiber& Fiber::main() {
  static Fiber fiber;
  if (running == nullptr) running = &fiber;
  return fiber;
}

void Fiber::switch_to(Fiber& to) {
  previous = this;
  running = &to;
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&fake_stack_, to.low_, to.size_);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(to.tsan_, kNoSynchronisation);
  switch_contexts(&context_, to.context_);
  arrive();
}

void Fiber::arrive() {
  if (__sanitizer_finish_switch_fiber == nullptr) return;
  const void* low;
  size_t size;
  __sanitizer_finish_switch_fiber(fake_stack_, &low, &size);
  if (previous->memory_ == nullptr) previous->low_ = low, previous->size_ = size;
}

void Fiber::start() {
  running->arrive();
  running->entry_();
}

void release(void* at) {
  if (__tsan_release) __tsan_release(at);
}

void acquire(void* at) {
  if (__tsan_acquire) __tsan_acquire(at);
}

}  // namespace fastlm::emulator
