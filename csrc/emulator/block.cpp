#include "emulator/block.h"

#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "emulator/fiber.h"
#include "emulator/ptx/copy.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace fastlm::emulator {

Traffic traffic;

namespace {

constexpr int kWarp = 32, kBarriers = 16, kMaxThreads = 1024;

struct Warp {
  unsigned alive = 0;    // lanes that have not returned
  unsigned waiting = 0;  // lanes that wait in rendezvous()
  struct {
    const char* name;
    unsigned mask;
    Operation operation;
    void* arguments;
  } lanes[kWarp];
  char phases[2 * kWarp];  // addresses for ThreadSanitizer, which warp_sync uses in turn
  unsigned next_phase = 0;
};

struct Thread {
  Thread(void (*entry)(), int number) : fiber(entry, number), number(number), lane(number % kWarp) {}

  Fiber fiber;
  int number, lane;
  uint3 index{};
  std::deque<PendingCopy> copies;  // every cp_async in flight
  std::deque<int> groups;          // the number of copies in each committed group, the oldest first
  int uncommitted = 0;             // the number of copies after the last group
  Thread* next = nullptr;          // the next thread in the same queue
};

// A first-in first-out list of threads. It allocates nothing, because ThreadSanitizer would report memory that one
// thread allocates and another frees.
class Queue {
 public:
  bool empty() const { return first_ == nullptr; }

  void push(Thread* thread) {
    thread->next = nullptr;
    (empty() ? first_ : last_->next) = thread;
    last_ = thread;
  }

  Thread* pop() {
    Thread* thread = first_;
    first_ = thread->next;
    return thread;
  }

  void append(Queue& other) {
    if (other.empty()) return;
    (empty() ? first_ : last_->next) = other.first_;
    last_ = other.last_;
    other.first_ = nullptr;
  }

 private:
  Thread* first_ = nullptr;
  Thread* last_ = nullptr;
};

struct Barrier {
  int expected = 0;  // number of threads; 0 means all that have not returned
  int arrived = 0;
  Queue waiting;
  // Addresses for ThreadSanitizer, used by the phases in turn. With a single address, a slow thread of this phase would
  // also acquire what fast threads release in the next phase.
  char phases[2] = {};
  int phase = 0;
};

std::vector<std::unique_ptr<Thread>> threads;  // kept from launch to launch
std::array<Warp, kMaxThreads / kWarp> warps;
std::array<Barrier, kBarriers> barriers;
Queue ready;
std::unique_ptr<char[]> shared_memory;
const std::function<void()>* body = nullptr;
std::exception_ptr error;
Thread* current = nullptr;
int alive = 0;
// Addresses that tell ThreadSanitizer the order of CTAs and of the host: each runs after the previous one has ended.
char begin_of_block, end_of_block;

// Returns the warp of the running thread.
Warp& warp() { return warps[current->number / kWarp]; }

// Sets threadIdx to that of the current thread, which continues to run.
void resume() { threadIdx = current->index; }

// Switches from the running thread to the next ready one, or to the host if none is ready.
void yield() {
  Thread* self = current;
  Fiber& from = self->fiber;
  if (ready.empty()) {
    from.switch_to(Fiber::main());
  } else {
    current = ready.pop();
    from.switch_to(current->fiber);
  }
  resume();
}

// Makes the threads that wait at a barrier ready, and begins its next phase.
void complete(Barrier& barrier) {
  ready.append(barrier.waiting);
  barrier.arrived = 0;
  barrier.phase ^= 1;
}

int expected(const Barrier& barrier) { return barrier.expected == 0 ? alive : barrier.expected; }

// Counts the running thread as arrived at barrier `id`.
void arrive(int id, int count) {
  if (id < 0 || id >= kBarriers) fail("barrier %d: the barriers are 0 to %d", id, kBarriers - 1);
  if (count % kWarp != 0) fail("barrier %d: %d threads are not a whole number of warps", id, count);
  Barrier& barrier = barriers[id];
  if (barrier.arrived != 0 && barrier.expected != count) {
    fail("barrier %d: this thread expects %d threads there, others %d", id, count, barrier.expected);
  }
  barrier.expected = count;
  barrier.arrived++;
  release(&barrier.phases[barrier.phase]);
  if (barrier.arrived > expected(barrier)) fail("barrier %d: more than %d threads arrived", id, count);
}

// Removes the running thread, whose kernel has returned, from its warp and from the barriers that wait for all threads.
void retire() {
  if (!current->copies.empty()) fail("returned without waiting for %zu cp_async", current->copies.size());
  current->groups.clear();
  alive--;
  release(&end_of_block);
  warp().alive &= ~(1u << current->lane);
  for (Barrier& barrier : barriers) {
    if (barrier.arrived != 0 && barrier.expected == 0 && barrier.arrived == alive) complete(barrier);
  }
}

// The entry of a thread's fiber: runs one kernel after another and never returns.
void run_kernels() {
  for (;;) {
    resume();
    acquire(&begin_of_block);
    try {
      (*body)();
      retire();
    } catch (...) {
      error = std::current_exception();
      release(&end_of_block);
    }
    if (error) current->fiber.switch_to(Fiber::main());
    yield();
  }
}

// Prepares a CTA of `count` threads.
void reset(int count) {
  for (int i = static_cast<int>(threads.size()); i < count; i++)
    threads.push_back(std::make_unique<Thread>(run_kernels, i));
  warps = {};
  barriers = {};
  ready = {};
  for (int i = 0; i < count; i++) {
    Thread& thread = *threads[i];
    thread.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    warps[i / kWarp].alive |= 1u << thread.lane;
    ready.push(&thread);
  }
  alive = count;
}

// Returns a message that says who waits for what.
std::string deadlock() {
  std::string message = "deadlock in block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
                        std::to_string(blockIdx.z) + "):";
  for (int id = 0; id < kBarriers; id++) {
    const Barrier& barrier = barriers[id];
    if (barrier.arrived == 0) continue;
    message += " " + std::to_string(barrier.arrived) + " of " + std::to_string(expected(barrier)) +
               " threads arrived at barrier " + std::to_string(id) + ";";
  }
  for (const auto& thread : threads) {
    const Warp& warp = warps[thread->number / kWarp];
    if ((warp.waiting >> thread->lane & 1) == 0) continue;
    char text[128];
    std::snprintf(text, sizeof text, " thread %d waits in %s for lanes %08x, of which %08x arrived;", thread->number,
                  warp.lanes[thread->lane].name, warp.lanes[thread->lane].mask, warp.waiting);
    message += text;
    if (message.size() > 2000) break;
  }
  return message;
}

void run_block(int count, size_t shared) {
  reset(count);
  std::memset(shared_memory.get(), 0xff, shared);
  release(&begin_of_block);
  current = ready.pop();
  Fiber::main().switch_to(current->fiber);
  acquire(&end_of_block);
  if (!error && alive != 0) error = std::make_exception_ptr(std::runtime_error(deadlock()));
}

}  // namespace

void run(dim3 grid, dim3 block, size_t shared, const std::function<void()>& kernel) {
  const int count = block.x * block.y * block.z;
  if (count < 1 || count > kMaxThreads) {
    throw std::runtime_error("a block has 1 to 1024 threads, not " + std::to_string(count));
  }
  Fiber::main();
  gridDim = grid, blockDim = block, body = &kernel;
  shared_memory =
      std::make_unique<char[]>(shared);  // of exactly this size, so that AddressSanitizer finds accesses past its end
  for (unsigned z = 0; z < grid.z && !error; z++) {
    for (unsigned y = 0; y < grid.y && !error; y++) {
      for (unsigned x = 0; x < grid.x && !error; x++) {
        blockIdx = {x, y, z};
        run_block(count, shared);
      }
    }
  }
  if (error) {
    threads.clear();  // some fibers stopped in the middle of the kernel
    std::rethrow_exception(std::exchange(error, nullptr));
  }
}

void fail(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  char message[640];
  std::snprintf(message, sizeof message, "thread %d of block (%u, %u, %u): %s", current->number, blockIdx.x, blockIdx.y,
                blockIdx.z, text);
  throw std::runtime_error(message);
}

void count_read(size_t bytes) {
  traffic.read += bytes;
  traffic.accesses++;
}

void count_written(size_t bytes) {
  traffic.written += bytes;
  traffic.accesses++;
}

void count_cached(size_t bytes) { traffic.cached += bytes; }

void* dynamic_shared() { return shared_memory.get(); }

unsigned lane() { return current->lane; }

void start_copy(const PendingCopy& copy) {
  current->copies.push_back(copy);
  current->uncommitted++;
}

void commit_copies() { current->groups.push_back(std::exchange(current->uncommitted, 0)); }

bool pop_finished_copy(int pending, PendingCopy& copy) {
  auto& copies = current->copies;
  auto& groups = current->groups;
  while (static_cast<int>(groups.size()) > pending && groups.front() == 0) groups.pop_front();
  if (static_cast<int>(groups.size()) <= pending) return false;
  groups.front()--;
  copy = copies.front();
  copies.pop_front();
  return true;
}

void barrier_arrive(int id, int count) {
  arrive(id, count);
  if (barriers[id].arrived == expected(barriers[id])) complete(barriers[id]);
}

void barrier_wait(int id, int count) {
  arrive(id, count);
  Barrier& barrier = barriers[id];
  char* phase = &barrier.phases[barrier.phase];
  if (barrier.arrived == expected(barrier)) {
    complete(barrier);
  } else {
    barrier.waiting.push(current);
    yield();
  }
  acquire(phase);
}

void rendezvous(const char* name, unsigned mask, Operation operation, void* arguments) {
  Warp& warp = emulator::warp();
  const int lane = current->lane;
  if ((mask >> lane & 1) == 0) fail("%s: the mask %08x leaves out the lane that calls, %d", name, mask, lane);
  if (mask & ~warp.alive)
    fail("%s: the mask %08x names lanes that have returned: %08x", name, mask, mask & ~warp.alive);
  warp.lanes[lane] = {name, mask, operation, arguments};
  // Waiting lanes whose masks overlap have the same mask and operation. If lanes of this mask wait, it is therefore
  // enough to compare with one of them. If none waits, the masks of all waiting lanes are checked for an overlap.
  const unsigned others = warp.waiting & mask;
  for (unsigned rest = others ? others & -others : warp.waiting; rest != 0; rest &= rest - 1) {
    const auto& other = warp.lanes[__builtin_ctz(rest)];
    if ((other.mask & mask) != 0 && (other.operation != operation || other.mask != mask)) {
      fail("%s with mask %08x: lane %d waits in %s with mask %08x", name, mask, __builtin_ctz(rest), other.name,
           other.mask);
    }
  }
  warp.waiting |= 1u << lane;
  if ((warp.waiting & mask) != mask) return yield();
  void* all[kWarp];
  for (int i = 0; i < kWarp; i++) all[i] = mask >> i & 1 ? warp.lanes[i].arguments : nullptr;
  operation(all, mask);
  warp.waiting &= ~mask;
  for (int i = 0; i < kWarp; i++) {
    if (i != lane && (mask >> i & 1) != 0) ready.push(threads[current->number - lane + i].get());
  }
}

void warp_sync(unsigned mask) {
  Warp& warp = emulator::warp();
  const unsigned others = warp.waiting & mask;
  void* phase = others ? warp.lanes[__builtin_ctz(others)].arguments : &warp.phases[warp.next_phase++ % (2 * kWarp)];
  release(phase);
  rendezvous("__syncwarp", mask, [](void* const*, unsigned) {}, phase);
  acquire(phase);
}

}  // namespace fastlm::emulator
