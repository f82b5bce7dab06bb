// PTX for the named barriers of a CTA. emulator/ptx/barrier.h has a twin of each function.
#pragma once

#include "common/cuda.cuh"

#if defined(FASTLM_EMULATOR)
#include "emulator/ptx/barrier.h"
#else

namespace fastlm {

// barrier_sync waits at barrier `id`, 0 to 15, until `threads` threads (whole warps) have called barrier_sync or
// barrier_arrive there. barrier_arrive does not wait. __syncthreads() uses barrier 0.
__device__ __forceinline__ void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace fastlm

#endif
