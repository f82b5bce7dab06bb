// Fiber: a thread of a CTA, with its own stack. A switch costs a few nanoseconds.
#pragma once

#include <cstddef>

namespace fastlm::emulator {

class Fiber {
 public:
  // The first switch to the fiber runs entry(), which never returns. `index` staggers the stacks: if all tops were
  // equal modulo 4096, the frames of all threads would fall into the same few sets of the cache.
  Fiber(void (*entry)(), int index);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Returns the fiber of the operating system's thread. The emulator runs on only one.
  static Fiber& main();

  // Stops this fiber, which must be the running one, and runs `to`. Returns when a fiber switches back.
  void switch_to(Fiber& to);

 private:
  Fiber();
  static void start();
  void arrive();

  void (*entry_)() = nullptr;
  void* context_ = nullptr;    // its saved registers, while it does not run
  char* memory_ = nullptr;     // a guard page, then the stack
  const void* low_ = nullptr;  // the stack's limits, for AddressSanitizer
  size_t size_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  void* tsan_ = nullptr;        // ThreadSanitizer's
};

// Tell ThreadSanitizer that accesses before a release happen before accesses after an acquire of the same address.
void release(void* at);
void acquire(void* at);

}  // namespace fastlm::emulator
