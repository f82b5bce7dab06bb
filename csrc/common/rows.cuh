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

constexpr int kLane = 8;            // columns of a vector
constexpr int kWarpColumns = 256;   // columns that a warp holds of a chunk
constexpr int kLongestRow = 8192;   // columns
constexpr int kMostRows = 1 << 30;  // so that ints number rows

// A vector of E parameters: null, float32, or of the activations' type.
struct Parameter {
  const void* data;  // (E,)
  bool is_float;
};

inline Parameter parameter(const char* what, const Array& array, DType activations, int64_t columns) {
  if (!array) return {.data = nullptr, .is_float = true};
  array.expect(what, array.dtype == DType::kFloat32 ? DType::kFloat32 : activations, {columns});
  return {.data = array.data, .is_float = array.dtype == DType::kFloat32};
}

// kWide: accesses of 16 bytes, for which E must be a multiple of 8 and all arrays aligned.
template <int kWarps_, int kChunks_, bool kWide_>
struct RowShape {
  static constexpr int kWarps = kWarps_, kChunks = kChunks_;
  static constexpr bool kWide = kWide_;
  static constexpr int kThreads = kWarps > 4 ? kWarps * kWarpSize : kWarps * kChunks == 3 ? 96 : 128;
  static constexpr int kSummingBlocks = kThreads > 128 ? 512 / kThreads : 4;
  static constexpr int kRows = kThreads / (kWarps * kWarpSize);     // at a time in a block
  static constexpr int kColumns = kChunks * kWarps * kWarpColumns;  // at most

  // The row, of those that the block has, that this thread works on.
  __device__ __forceinline__ static int row() { return threadIdx.x / (kWarps * kWarpSize); }
  // The first column of this thread's vector of a chunk.
  __device__ __forceinline__ static int column(int chunk) {
    return (chunk * kWarps * kWarpSize + threadIdx.x % (kWarps * kWarpSize)) * kLane;
  }

  // Whether column j of this thread's vector of a chunk is one of the row's E.
  __device__ __forceinline__ static bool inside(int chunk, int j, int E) {
    return column(chunk) + (kWide ? 0 : j) < E;  // wide: E is a multiple of the vector's length
  }

  // This thread's vector of a chunk of the row at `from`, of E columns; zeros beyond them.
  template <Use kUse = Use::kOnce, typename T>
  __device__ __forceinline__ static Vec<T, kLane> load(const T* from, int chunk, int E) {
    return load_vec<kLane, kWide, kUse>(from + column(chunk), E - column(chunk));
  }
  template <typename T>
  __device__ __forceinline__ static void store(T* to, int chunk, int E, const Vec<T, kLane>& vec) {
    store_vec<kLane, kWide>(to + column(chunk), vec, E - column(chunk));
  }
  template <typename T>
  __device__ __forceinline__ static void store(T* to, int chunk, int E, const float (&values)[kLane]) {
    store(to, chunk, E, Vec<T, kLane>::of(values));
  }

  template <typename T>
  __device__ __forceinline__ static void load_parameter(Parameter p, int chunk, int E, float (&values)[kLane]) {
    if (p.is_float) {
      load<Use::kRepeated>(static_cast<const float*>(p.data), chunk, E).copy_to(values);
    } else {
      load<Use::kRepeated>(static_cast<const T*>(p.data), chunk, E).copy_to(values);
    }
  }
};

inline void check_rows(int64_t rows, int64_t columns) {
  check(rows <= kMostRows, "the kernels take at most 2^30 rows, got ", rows);
  check(columns <= kLongestRow, "the kernels take rows of at most ", kLongestRow, " columns, got ", columns);
}

// function(RowShape<...>{}) for the smallest shape that holds rows of `columns`. What cannot be read 16 bytes at a time
// is rare, and has fewer shapes.
template <typename Function>
void with_row_shape(int64_t rows, int64_t columns, bool wide, Function&& function) {
  check_rows(rows, columns);
  const int64_t chunks = (columns + kWarpColumns - 1) / kWarpColumns;
  if (!wide) return chunks <= 4 ? function(RowShape<1, 4, false>{}) : function(RowShape<8, 4, false>{});
  if (chunks <= 1) return function(RowShape<1, 1, true>{});
  if (chunks <= 2) return function(RowShape<1, 2, true>{});
  if (chunks <= 3) return function(RowShape<1, 3, true>{});
  if (chunks <= 4) return function(RowShape<1, 4, true>{});
  if (chunks <= 16) return function(RowShape<4, 4, true>{});
  return function(RowShape<8, 4, true>{});
}

// The same for kernels of activations T that keep sums over rows in registers, three a column, beside the row itself.
template <typename T, typename Function>
void with_summing_row_shape(int64_t rows, int64_t columns, bool wide, Function&& function) {
  check_rows(rows, columns);
  const int64_t chunks = (columns + kWarpColumns - 1) / kWarpColumns;
  if (!wide) return chunks <= 4 ? function(RowShape<2, 2, false>{}) : function(RowShape<16, 2, false>{});
  if (chunks <= 1) return function(RowShape<1, 1, true>{});
  if (chunks <= 2) return function(RowShape<1, 2, true>{});
  if constexpr (sizeof(T) == 2) {
    if (chunks <= 3) return function(RowShape<1, 3, true>{});
  }
  if (chunks <= 4) return function(RowShape<2, 2, true>{});
  if (chunks <= 16) return function(RowShape<8, 2, true>{});
  return function(RowShape<16, 2, true>{});
}

}  // namespace fastlm
