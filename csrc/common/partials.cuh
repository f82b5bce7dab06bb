// Gradients of parameters: deterministic sums over all rows, without atomics. Each of P CTAs loops over rows, adds them
// up in registers and stores one partial sum. Then one kernel adds the P partial sums.
#pragma once

#include "common/launch.cuh"
#include "common/rows.cuh"

namespace fastlm {

constexpr int kMaxSums = 3;  // dgamma, dbeta, dbias

// Shared memory for store_partial: one row of sums for each of the kRows rows that a CTA processes at a time, or
// nothing if kRows is 1.
template <typename Shape>
using PartialScratch = float[Shape::kRows > 1 ? Shape::kRows : 1][Shape::kRows > 1 ? Shape::kColumns : 1];

// Adds each column's `values` over the rows of the CTA and stores the sums in `to` (E,). All threads must call.
template <typename Shape>
__device__ __forceinline__ void store_partial(const float (&values)[Shape::kVecs][kVecSize], float* to, int E,
                                              PartialScratch<Shape>& scratch) {
  if constexpr (Shape::kRows == 1) {
#pragma unroll
    for (int i = 0; i < Shape::kVecs; i++) Shape::store(to, i, E, values[i]);
  } else {
    __syncthreads();  // all threads have read the sums of an earlier call
#pragma unroll
    for (int i = 0; i < Shape::kVecs; i++) {
#pragma unroll
      for (int j = 0; j < kVecSize; j++) scratch[Shape::row()][Shape::column(i) + j] = values[i][j];
    }
    __syncthreads();
    for (int column = threadIdx.x; column < E; column += Shape::kThreads) {
      float sum = 0.0f;
#pragma unroll
      for (int row = 0; row < Shape::kRows; row++) sum += scratch[row][column];
      store_global(to + column, sum);
    }
  }
}

// Throws unless partials is (sums, P, E) float32 with P > 0. Returns P.
inline int64_t check_partials(const Array& partials, int64_t sums, int64_t E) {
  check(partials.rank == 3, "partials must have shape (sums, num_partials, E), got ", partials.rank, " dimensions");
  partials.expect("partials", DType::kFloat32, {sums, partials.shape[1], E});
  check(partials.shape[1] > 0, "num_partials must be at least 1, got 0");
  return partials.shape[1];
}

// Sets out0, out1 and out2 (E,), where not None, to the sums over P of partials[0], [1] and [2], in one launch.
// partials is (1 to 3, P, E) float32.
void sum_partials(const Array& partials, const Array& out0, const Array& out1, const Array& out2, Stream stream);

}  // namespace fastlm
