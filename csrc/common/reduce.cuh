// Deterministic sums over lanes and warps.
#pragma once

#include "common/cuda.cuh"

namespace fastlm {

// Returns the sum over the lanes of a warp, in every lane.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

// Shared memory for group_sum. Two successive calls need two of these: a slow warp may still read the sums of the first
// call when a fast warp writes those of the second. A third call may use the first one again, because the barrier of
// the second call lies between them.
template <int kWarps, int kSums>
using ReduceScratch = float[kWarps > 1 ? kSums : 1][kWarpSize];

// Replaces each of the kSums values by its sum over a group of kWarps neighbouring warps, in every lane. If kWarps > 1,
// all threads of the CTA must call.
template <int kWarps, int kSums>
__device__ __forceinline__ void group_sum(float (&x)[kSums], ReduceScratch<kWarps, kSums>& scratch) {
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
__device__ __forceinline__ float group_sum(float x, ReduceScratch<kWarps, 1>& scratch) {
  float sum[1] = {x};
  group_sum<kWarps>(sum, scratch);
  return sum[0];
}

}  // namespace fastlm
