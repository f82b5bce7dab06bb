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

// The sums of kSums values over each group of kWarps neighbouring warps, in every lane. All threads of the block must
// call where kWarps > 1. `scratch` is shared memory, and holds the sums until all warps have read them: the next call
// needs another, and the one after, which the barrier between the two lets begin, may use the first again.
template <int kWarps, int kSums>
using Scratch = float[kWarps > 1 ? kSums : 1][kWarpSize];

template <int kWarps, int kSums>
__device__ __forceinline__ void group_sum(float (&x)[kSums], Scratch<kWarps, kSums>& scratch) {
#pragma unroll
  for (int i = 0; i < kSums; i++) x[i] = warp_sum(x[i]);
  if constexpr (kWarps > 1) {
    const int warp = threadIdx.x / kWarpSize;
    if (threadIdx.x % kWarpSize == 0) {
#pragma unroll
      for (int i = 0; i < kSums; i++) scratch[i][warp] = x[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSums; i++) {
      x[i] = 0.0f;
#pragma unroll
      for (int j = 0; j < kWarps; j++) x[i] += scratch[i][warp / kWarps * kWarps + j];
    }
  }
}

template <int kWarps>
__device__ __forceinline__ float group_sum(float x, Scratch<kWarps, 1>& scratch) {
  float sum[1] = {x};
  group_sum<kWarps>(sum, scratch);
  return sum[0];
}

}  // namespace fastlm
