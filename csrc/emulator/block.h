// Runs a launch: CTAs one after another, and the threads of a CTA as fibers on one CPU thread. A thread runs until it
// waits for others at a barrier or in a warp-wide instruction; then the next ready thread runs. A mistake in waiting
// ends the launch with an error that says who waits for what.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "emulator/language.h"

namespace fastlm::emulator {

// Runs kernel() in every thread of the grid, with `shared` bytes of dynamic shared memory. Throws std::runtime_error.
void run(dim3 grid, dim3 block, size_t shared, const std::function<void()>& kernel);

// Ends the launch with an error that names the running thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Returns the CTA's dynamic shared memory. It is filled with 0xff bytes, which read as NaN, when the CTA begins.
void* dynamic_shared();

// Returns the running thread's lane.
unsigned lane();

// Waits until `threads` threads have arrived at barrier `id`; 0 means all threads that have not returned.
void barrier_wait(int id, int threads);
// Counts the thread as arrived at barrier `id`, without waiting.
void barrier_arrive(int id, int threads);

// An operation that the lanes of a warp do together. All lanes of `mask` call rendezvous() with the same operation and
// mask. The last to arrive runs operation(arguments, mask) for all; arguments[i] are those of lane i.
using Operation = void (*)(void* const* arguments, unsigned mask);
void rendezvous(const char* name, unsigned mask, Operation operation, void* arguments);
// A rendezvous that also orders memory among the lanes of `mask`. Other rendezvous do not.
void warp_sync(unsigned mask);

// The bytes that kernels move to and from global memory, counted by common/vec.cuh and cp_async.
struct Traffic {
  uint64_t read = 0;      // bytes of arrays that are read once, from HBM
  uint64_t written = 0;   // bytes
  uint64_t cached = 0;    // bytes of operands that many CTAs read, from a cache
  uint64_t accesses = 0;  // number of reads and writes that `read` and `written` count
};
extern Traffic traffic;
void count_read(size_t bytes);
void count_written(size_t bytes);
void count_cached(size_t bytes);

}  // namespace fastlm::emulator
