// The parts of a layer norm over rows in registers (common/rows.cuh).
#pragma once

#include "common/reduce.cuh"
#include "common/rows.cuh"

namespace fastlm {

template <typename Shape>
using RowValues = float[Shape::kChunks][kLane];

// Mean and reciprocal standard deviation of a row of `columns` values, which are zeros past the `E` that are there (all
// columns, or none of a row beyond the last).
//
// A sum of many values is rounded, and its mean a few units in the last place off. rstd, 10^6 in a constant row at
// BERT's eps of 1e-12, would multiply that. So the mean is corrected by the mean of what it leaves, which makes that of
// a constant row exact. It costs 3 instructions per element (counted for sm_90a, E = 768) and no byte.
template <typename Shape, typename Values>
__device__ __forceinline__ float2 row_statistics(const Values (&s)[Shape::kChunks], int E, int columns, float eps,
                                                 Scratch<Shape::kWarps, 1> (&scratch)[2]) {
  float total = 0.0f, left = 0.0f, square = 0.0f;
#pragma unroll
  for (int i = 0; i < Shape::kChunks; i++) {
#pragma unroll
    for (int j = 0; j < kLane; j++) total += s[i][j];
  }
  float mean = group_sum<Shape::kWarps>(total, scratch[0]) / columns;
#pragma unroll
  for (int i = 0; i < Shape::kChunks; i++) {
#pragma unroll
    for (int j = 0; j < kLane; j++) left += Shape::inside(i, j, E) ? s[i][j] - mean : 0.0f;
  }
  mean += group_sum<Shape::kWarps>(left, scratch[1]) / columns;
#pragma unroll
  for (int i = 0; i < Shape::kChunks; i++) {
#pragma unroll
    for (int j = 0; j < kLane; j++) {
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

// values * gamma + beta of a chunk.
template <typename T, typename Shape>
__device__ __forceinline__ void affine(float (&values)[kLane], Parameter gamma, Parameter beta, int chunk, int E) {
  float parameter[kLane];
  Shape::template load_parameter<T>(gamma, chunk, E, parameter);
#pragma unroll
  for (int j = 0; j < kLane; j++) values[j] *= parameter[j];
  if (beta.data == nullptr) return;
  Shape::template load_parameter<T>(beta, chunk, E, parameter);
#pragma unroll
  for (int j = 0; j < kLane; j++) values[j] += parameter[j];
}

// values + bias of a chunk.
template <typename T, typename Shape>
__device__ __forceinline__ void add_bias(float (&values)[kLane], Parameter bias, int chunk, int E) {
  if (bias.data == nullptr) return;
  float parameter[kLane];
  Shape::template load_parameter<T>(bias, chunk, E, parameter);
#pragma unroll
  for (int j = 0; j < kLane; j++) values[j] += parameter[j];
}

// mean(g) and mean(g * xhat) of g = dy * gamma: what the derivative takes from the rest of a row. dy is zeros past E.
template <typename T, typename Shape, typename DY>
__device__ __forceinline__ float2 row_means(const DY (&dy)[Shape::kChunks], const RowValues<Shape>& xhat,
                                            Parameter gamma, int E, int columns, Scratch<Shape::kWarps, 2>& scratch) {
  float means[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < Shape::kChunks; i++) {
    float g[kLane];
    Shape::template load_parameter<T>(gamma, i, E, g);
#pragma unroll
    for (int j = 0; j < kLane; j++) {
      means[0] += dy[i][j] * g[j];
      means[1] += dy[i][j] * g[j] * xhat[i][j];
    }
  }
  group_sum<Shape::kWarps>(means, scratch);
  return {means[0] / columns, means[1] / columns};
}

}  // namespace fastlm
