// The parts of a layer norm, for rows held in registers (common/rows.cuh).
#pragma once

#include "common/reduce.cuh"
#include "common/rows.cuh"

namespace fastlm {

template <typename Shape>
using RowValues = float[Shape::kVecs][kVecSize];

// Returns the mean and the reciprocal standard deviation (rstd) of a row of `columns` values. E is `columns`, or 0 for
// a row past the last one. The values are zeros past E.
//
// The rounding error of the sum makes the mean wrong by a few units in the last place, and rstd would multiply that
// error: in a constant row rstd is 10^6 at BERT's eps of 1e-12. Therefore the mean of the deviations is added to the
// mean, which makes the mean of a constant row exact. This costs 3 instructions per element (counted for sm_90a, E =
// 768) and no bytes.
template <typename Shape, typename Values>
__device__ __forceinline__ float2 row_statistics(const Values (&s)[Shape::kVecs], int E, int columns, float eps,
                                                 ReduceScratch<Shape::kWarps, 1> (&scratch)[2]) {
  float sum = 0.0f, deviation = 0.0f, square = 0.0f;
#pragma unroll
  for (int i = 0; i < Shape::kVecs; i++) {
#pragma unroll
    for (int j = 0; j < kVecSize; j++) sum += s[i][j];
  }
  float mean = group_sum<Shape::kWarps>(sum, scratch[0]) / columns;
#pragma unroll
  for (int i = 0; i < Shape::kVecs; i++) {
#pragma unroll
    for (int j = 0; j < kVecSize; j++) deviation += Shape::inside(i, j, E) ? s[i][j] - mean : 0.0f;
  }
  mean += group_sum<Shape::kWarps>(deviation, scratch[1]) / columns;
#pragma unroll
  for (int i = 0; i < Shape::kVecs; i++) {
#pragma unroll
    for (int j = 0; j < kVecSize; j++) {
      const float centred = Shape::inside(i, j, E) ? s[i][j] - mean : 0.0f;
      square += centred * centred;
    }
  }
  return {mean, rsqrtf(group_sum<Shape::kWarps>(square, scratch[0]) / columns + eps)};
}

template <typename Shape>
__device__ __forceinline__ void store_statistics(float* mean, float* rstd, int row, int rows, float2 statistics) {
  if (Shape::column(0) != 0 || row >= rows) return;
  store_global(mean + row, statistics.x);
  store_global(rstd + row, statistics.y);
}

// Replaces `values`, the lane's vector `index` of a row, by values * gamma + beta.
template <typename T, typename Shape>
__device__ __forceinline__ void affine(float (&values)[kVecSize], Parameter gamma, Parameter beta, int index, int E) {
  float parameter[kVecSize];
  Shape::template load_parameter<T>(gamma, index, E, parameter);
#pragma unroll
  for (int j = 0; j < kVecSize; j++) values[j] *= parameter[j];
  if (beta.data == nullptr) return;
  Shape::template load_parameter<T>(beta, index, E, parameter);
#pragma unroll
  for (int j = 0; j < kVecSize; j++) values[j] += parameter[j];
}

// Adds the bias to `values`, the lane's vector `index` of a row.
template <typename T, typename Shape>
__device__ __forceinline__ void add_bias(float (&values)[kVecSize], Parameter bias, int index, int E) {
  if (bias.data == nullptr) return;
  float parameter[kVecSize];
  Shape::template load_parameter<T>(bias, index, E, parameter);
#pragma unroll
  for (int j = 0; j < kVecSize; j++) values[j] += parameter[j];
}

// Returns mean(g) and mean(g * xhat) of a row, with g = dy * gamma, for the gradient. dy is zeros past E.
template <typename T, typename Shape, typename DY>
__device__ __forceinline__ float2 row_means(const DY (&dy)[Shape::kVecs], const RowValues<Shape>& xhat, Parameter gamma,
                                            int E, int columns, ReduceScratch<Shape::kWarps, 2>& scratch) {
  float means[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < Shape::kVecs; i++) {
    float g[kVecSize];
    Shape::template load_parameter<T>(gamma, i, E, g);
#pragma unroll
    for (int j = 0; j < kVecSize; j++) {
      means[0] += dy[i][j] * g[j];
      means[1] += dy[i][j] * g[j] * xhat[i][j];
    }
  }
  group_sum<Shape::kWarps>(means, scratch);
  return {means[0] / columns, means[1] / columns};
}

}  // namespace fastlm
