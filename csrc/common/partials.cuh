// Gradients of parameters: sums over all rows, the same bits each time and without atomics. Each of P programs (blocks
// that take rows in turn) sums its own in registers and stores it once; then one kernel adds the programs' sums.
#pragma once

#include "common/launch.cuh"
#include "common/rows.cuh"

namespace fastlm {

constexpr int kMostSums = 3;  // dgamma, dbeta, dbias

// A block's sum over its rows of a column's values, to `to` (E,). `scratch` is shared memory of a row for each of the
// block's, where it has several; all threads must call.
template <typename Shape>
using PartialScratch = float[Shape::kRows > 1 ? Shape::kRows : 1][Shape::kRows > 1 ? Shape::kColumns : 1];

template <typename Shape>
__device__ __forceinline__ void store_partial(const float (&values)[Shape::kChunks][kLane], float* to, int E,
                                              PartialScratch<Shape>& scratch) {
  if constexpr (Shape::kRows == 1) {
#pragma unroll
    for (int i = 0; i < Shape::kChunks; i++) Shape::store(to, i, E, values[i]);
  } else {
    __syncthreads();  // an earlier sum has been read
#pragma unroll
    for (int i = 0; i < Shape::kChunks; i++) {
#pragma unroll
      for (int j = 0; j < kLane; j++) scratch[Shape::row()][Shape::column(i) + j] = values[i][j];
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

// P of partials that must be (sums, P, E) float32.
inline int64_t programs_of(const Array& partials, int64_t sums, int64_t E) {
  check(partials.rank == 3, "partials must have shape (sums, programs, E), got ", partials.rank, " dimensions");
  partials.expect("partials", DType::kFloat32, {sums, partials.shape[1], E});
  check(partials.shape[1] > 0, "partials must have at least 1 program");
  return partials.shape[1];
}

// out[i] (E,), or null, = the sum over programs of partials[i]; partials is (1 to 3, P, E) float32. One launch.
void sum_partials(const Array& partials, const Array& out0, const Array& out1, const Array& out2, Stream stream);

}  // namespace fastlm
