// A thread of a block: a stack of its own, and a switch that costs a few nanoseconds.
#pragma once

#include <cstddef>

namespace fastlm::emulator {

class Fiber {
 public:
  // Runs entry(), which never returns, when first switched to. `index` staggers the stacks: were all tops the same
  // modulo 4096, the threads' frames would share a few sets of the cache.
  Fiber(void (*entry)(), int index);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The operating system's thread: the emulator runs on one, and only one.
  static Fiber& main();

  // Stops this fiber, the one that runs, and goes on in `to`; returns when something switches back.
  void switch_to(Fiber& to);

 private:
  Fiber();
  static void start();
  void arrive();

  void (*entry_)() = nullptr;
  void* context_ = nullptr;    // its registers, while it does not run
  char* memory_ = nullptr;     // a guard page, then the stack
  const void* low_ = nullptr;  // the stack's limits, for AddressSanitizer
  size_t size_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  void* tsan_ = nullptr;        // ThreadSanitizer's
};

// For ThreadSanitizer: what came before a release comes before what follows an acquire of the same address.
void release(void* at);
void acquire(void* at);

}  // namespace fastlm::emulator
