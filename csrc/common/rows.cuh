// What kernels over the rows of an (N, E) array share: how a row lies in registers.
//
// A row belongs to a group of kWarps warps, and each lane holds kChunks vectors of 8 columns: a group's chunk is
// 256 * kWarps neighbouring columns. 8 columns are one access of 16 bytes in half precision, two in float32, and half a
// call of the dropout mask. Up to E = 1024 a row is one warp's and its sums need no barrier.
#pragma once

#include "common/array.h"
#include "common/static_switch.h"
#include "common/vec.cuh"

namespace fastlm {

constexpr int kLane = 8;           // columns of a vector
constexpr int kLongestRow = 8192;  // columns, 4 chunks of 8 warps
constexpr int kWholeWarp = 256;    // columns that a warp holds of a chunk

// A vector of E parameters: null, float32, or of the activations' type.
struct Parameter {
  const void* data;  // (E,)
  bool is_float;
};

inline Parameter parameter(const char* what, const Array& array, DType activations, int64_t columns) {
  if (!array) return {nullptr, true};
  array.expect(what, array.dtype == DType::kFloat32 ? DType::kFloat32 : activations, {columns});
  return {array.data, array.dtype == DType::kFloat32};
}

template <int kWarps_, int kChunks_>
struct RowShape {
  static constexpr int kWarps = kWarps_, kChunks = kChunks_;
  static constexpr int kThreads = kWarps * kWarpSize > 128 ? kWarps * kWarpSize : 128;
  static constexpr int kRows = kThreads / (kWarps * kWarpSize);   // at a time in a block
  static constexpr int kColumns = kChunks * kWarps * kWholeWarp;  // at most

  // The row, of those that the block has, that this thread works on.
  __device__ __forceinline__ static int row() { return threadIdx.x / (kWarps * kWarpSize); }
  // The first column of this thread's vector of a chunk.
  __device__ __forceinline__ static int column(int chunk) {
    return (chunk * kWarps * kWarpSize + threadIdx.x % (kWarps * kWarpSize)) * kLane;
  }
};

// function(RowShape<...>{}) for the smallest shape that holds rows of `columns`.
template <typename Function>
void with_row_shape(int64_t columns, Function&& function) {
  check(columns <= kLongestRow, "the kernels take rows of at most ", kLongestRow, " columns, got ", columns);
  if (columns <= 1 * kWholeWarp) return function(RowShape<1, 1>{});
  if (columns <= 2 * kWholeWarp) return function(RowShape<1, 2>{});
  if (columns <= 3 * kWholeWarp) return function(RowShape<1, 3>{});
  if (columns <= 4 * kWholeWarp) return function(RowShape<1, 4>{});
  if (columns <= 8 * kWholeWarp) return function(RowShape<2, 4>{});
  if (columns <= 16 * kWholeWarp) return function(RowShape<4, 4>{});
  return function(RowShape<8, 4>{});
}

// The same for kernels that keep sums over rows in registers beside the row, three a column: fewer columns a thread.
template <typename Function>
void with_summing_row_shape(int64_t columns, Function&& function) {
  check(columns <= kLongestRow, "the kernels take rows of at most ", kLongestRow, " columns, got ", columns);
  if (columns <= 1 * kWholeWarp) return function(RowShape<1, 1>{});
  if (columns <= 2 * kWholeWarp) return function(RowShape<1, 2>{});
  if (columns <= 3 * kWholeWarp) return function(RowShape<1, 3>{});
  if (columns <= 4 * kWholeWarp) return function(RowShape<2, 2>{});
  if (columns <= 8 * kWholeWarp) return function(RowShape<4, 2>{});
  if (columns <= 16 * kWholeWarp) return function(RowShape<8, 2>{});
  return function(RowShape<16, 2>{});
}

// The columns of a parameter from `column` on, of E.
template <typename T>
__device__ __forceinline__ void load_parameter(Parameter p, int column, int E, bool wide, float (&values)[kLane]) {
  if (std::is_same_v<T, float> || p.is_float) {
    const auto vec = load_vec<kLane, Use::kRepeated>(static_cast<const float*>(p.data) + column, E - column, wide);
#pragma unroll
    for (int i = 0; i < kLane; i++) values[i] = vec[i];
  } else {
    const auto vec = load_vec<kLane, Use::kRepeated>(static_cast<const T*>(p.data) + column, E - column, wide);
#pragma unroll
    for (int i = 0; i < kLane; i++) values[i] = vec[i];
  }
}

}  // namespace fastlm
