// Sums over lanes and warps, the same bits each time.
#pragma once

#include "common/cuda.cuh"

namespace fastlm {

// The sum over the lanes of a warp, in every lane.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int by = kWarpSize / 2; by > 0; by /= 2) x += __shfl_xor_sync(kAllLanes, x, by);
  return x;
}

// The sum over each group of kWarps neighbouring warps, in every lane. `scratch` is shared memory, a float a warp of
// the block; a second sum needs scratch of its own, or a barrier before it. All threads of the block must call.
template <int kWarps>
__device__ __forceinline__ float group_sum(float x, float* scratch) {
  x = warp_sum(x);
  if constexpr (kWarps > 1) {
    const int warp = threadIdx.x / kWarpSize;
    if (threadIdx.x % kWarpSize == 0) scratch[warp] = x;
    __syncthreads();
    x = 0.0f;
#pragma unroll
    for (int i = 0; i < kWarps; i++) x += scratch[warp / kWarps * kWarps + i];
  }
  return x;
}

}  // namespace fastlm
