// The layout of rows in registers, for kernels over the rows of an (N, E) array.
//
// A group of kWarps warps holds one row. Each lane holds kVecs vectors of 8 columns. Vector `index` of all lanes
// together covers 256 * kWarps neighbouring columns. For kWarps = 1:
//
//   columns   0-7    8-15   ...  248-255  | 256-263  264-271  ...  504-511  | ...
//   lane      0      1      ...  31       | 0        1        ...  31       | ...
//   index     0      0      ...  0        | 1        1        ...  1        | ...
//
// A vector is one access of 16 bytes in half precision, two in float32, and uses half a Philox call of the dropout
// mask. Up to E = 1024 one warp holds a row, so its sums need no barrier.
#pragma once

#include "common/array.h"
#include "common/static_switch.h"
#include "common/vec.cuh"

namespace fastlm {

constexpr int kVecSize = 8;        // columns per vector
constexpr int kWarpColumns = 256;  // columns that a warp covers with one vector per lane
constexpr int kMaxColumns = 8192;  // columns
constexpr int kMaxRows = 1 << 30;  // so that row indices fit into int

// The address of E parameters, in float32 or the activations' dtype. Null stands for None.
struct Parameter {
  const void* data;  // (E,)
  bool is_float;
};

// Checks an array of parameters and returns it as a Parameter.
inline Parameter parameter(const char* what, const Array& array, DType activations, int64_t columns) {
  if (!array) return {.data = nullptr, .is_float = true};
  array.expect(what, array.dtype == DType::kFloat32 ? DType::kFloat32 : activations, {columns});
  return {.data = array.data, .is_float = array.dtype == DType::kFloat32};
}

// kWide selects accesses of 16 bytes; E must then be a multiple of 8 and all arrays aligned to 16 bytes.
template <int kWarps_, int kVecs_, bool kWide_>
struct RowShape {
  static constexpr int kWarps = kWarps_, kVecs = kVecs_;
  static constexpr bool kWide = kWide_;
  static constexpr int kThreads = kWarps > 4 ? kWarps * kWarpSize : kWarps * kVecs == 3 ? 96 : 128;
  static constexpr int kMinSummingCtas = kThreads > 128 ? 512 / kThreads : 4;
  static constexpr int kRows = kThreads / (kWarps * kWarpSize);   // rows that a CTA processes at a time
  static constexpr int kColumns = kVecs * kWarps * kWarpColumns;  // the longest row

  // Returns the index, among the CTA's kRows rows, of the row that this thread works on.
  __device__ __forceinline__ static int row() { return threadIdx.x / (kWarps * kWarpSize); }
  // Returns the first column of this thread's vector `index`.
  __device__ __forceinline__ static int column(int index) {
    return (index * kWarps * kWarpSize + threadIdx.x % (kWarps * kWarpSize)) * kVecSize;
  }

  // Returns whether element j of this thread's vector `index` is within the row's E columns.
  __device__ __forceinline__ static bool inside(int index, int j, int E) {
    return column(index) + (kWide ? 0 : j) < E;  // wide: all 8 columns are inside or none is
  }

  // Loads this thread's vector `index` of the row at `from`, which has E columns. Returns zeros for columns past E.
  template <Use kUse = Use::kOnce, typename T>
  __device__ __forceinline__ static Vec<T, kVecSize> load(const T* from, int index, int E) {
    return load_vec<kVecSize, kWide, kUse>(from + column(index), E - column(index));
  }
  template <typename T>
  __device__ __forceinline__ static void store(T* to, int index, int E, const Vec<T, kVecSize>& vec) {
    store_vec<kVecSize, kWide>(to + column(index), vec, E - column(index));
  }
  template <typename T>
  __device__ __forceinline__ static void store(T* to, int index, int E, const float (&values)[kVecSize]) {
    store(to, index, E, Vec<T, kVecSize>::of(values));
  }

  template <typename T>
  __device__ __forceinline__ static void load_parameter(Parameter p, int index, int E, float (&values)[kVecSize]) {
    if (p.is_float) {
      load<Use::kRepeated>(static_cast<const float*>(p.data), index, E).copy_to(values);
    } else {
      load<Use::kRepeated>(static_cast<const T*>(p.data), index, E).copy_to(values);
    }
  }
};

inline void check_rows(int64_t rows, int64_t columns) {
  check(rows <= kMaxRows, "the kernels take at most 2^30 rows, got ", rows);
  check(columns <= kMaxColumns, "the kernels take rows of at most ", kMaxColumns, " columns, got ", columns);
}

// Calls function(RowShape<...>{}) with the smallest shape that holds rows of `columns` elements. `wide` allows accesses
// of 16 bytes. Other rows are rare and have fewer shapes.
template <typename Function>
void with_row_shape(int64_t rows, int64_t columns, bool wide, Function&& function) {
  check_rows(rows, columns);
  const int64_t vecs = (columns + kWarpColumns - 1) / kWarpColumns;
  if (!wide) return vecs <= 4 ? function(RowShape<1, 4, false>{}) : function(RowShape<8, 4, false>{});
  if (vecs <= 1) return function(RowShape<1, 1, true>{});
  if (vecs <= 2) return function(RowShape<1, 2, true>{});
  if (vecs <= 3) return function(RowShape<1, 3, true>{});
  if (vecs <= 4) return function(RowShape<1, 4, true>{});
  if (vecs <= 16) return function(RowShape<4, 4, true>{});
  return function(RowShape<8, 4, true>{});
}

// As with_row_shape, for kernels that also keep up to three sums per column in registers. T is the activations' type.
template <typename T, typename Function>
void with_summing_row_shape(int64_t rows, int64_t columns, bool wide, Function&& function) {
  check_rows(rows, columns);
  const int64_t vecs = (columns + kWarpColumns - 1) / kWarpColumns;
  if (!wide) return vecs <= 4 ? function(RowShape<2, 2, false>{}) : function(RowShape<16, 2, false>{});
  if (vecs <= 1) return function(RowShape<1, 1, true>{});
  if (vecs <= 2) return function(RowShape<1, 2, true>{});
  if constexpr (sizeof(T) == 2) {
    if (vecs <= 3) return function(RowShape<1, 3, true>{});
  }
  if (vecs <= 4) return function(RowShape<2, 2, true>{});
  if (vecs <= 16) return function(RowShape<8, 2, true>{});
  return function(RowShape<16, 2, true>{});
}

}  // namespace fastlm
