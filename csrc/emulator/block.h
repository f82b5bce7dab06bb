// How the emulator runs a launch: blocks one after another, the threads of a block as fibers on one CPU thread. A
// thread runs until it waits for others (a barrier, a warp's exchange), then the next that can go on does. Whatever
// a kernel does wrong in waiting ends the launch with an error that says who waits for what.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "emulator/language.h"

namespace fastlm::emulator {

// Runs kernel() in every thread of the grid, with `shared` bytes of dynamic shared memory. Throws std::runtime_error.
void run(dim3 grid, dim3 block, size_t shared, const std::function<void()>& kernel);

// Ends the launch with an error, said of the running thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The block's dynamic shared memory, filled with 0xff, which is no number, when the block begins.
void* dynamic_shared();

unsigned lane();

// Waits until `threads` threads, or with 0 all that have not returned, have come to barrier `id`.
void barrier_wait(int id, int threads);
// Counts the thread as come to barrier `id`, without waiting.
void barrier_arrive(int id, int threads);

// What the lanes of a warp do together. All lanes of `mask` come with the same operation and mask; the last of them
// runs operation(arguments, mask), with each lane's arguments in its place, for all.
using Operation = void (*)(void* const* arguments, unsigned mask);
void rendezvous(const char* name, unsigned mask, Operation operation, void* arguments);
// A rendezvous that orders memory among the lanes of `mask`, which no other does.
void warp_sync(unsigned mask);

// What kernels move to and from global memory, counted where they say so (common/vec.cuh, common/ptx.cuh).
struct Traffic {
  uint64_t read = 0;      // bytes of arrays that are read once
  uint64_t written = 0;   // bytes
  uint64_t cached = 0;    // bytes of operands that many blocks read, which caches serve
  uint64_t accesses = 0;  // reads and writes of the first two kinds
};
extern Traffic traffic;
void count_read(size_t bytes);
void count_written(size_t bytes);
void count_cached(size_t bytes);

}  // namespace fastlm::emulator
