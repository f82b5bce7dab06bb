// Tiles of rows in shared memory: copies to and from global memory, and fragments for mma.
#pragma once

#include "attention/params.h"
#include "common/ptx/copy.cuh"
#include "common/ptx/math.cuh"
#include "common/ptx/mma.cuh"
#include "common/static_switch.h"

namespace fastlm::attention {

// Returns the offset, in elements, of vector `vec` (8 elements, 16 bytes) of a row in a swizzled tile of kD columns.
//
// ldmatrix reads one vector from each of 8 rows. The swizzle moves that vector to another position in each row, so that
// the 8 reads use all 32 banks once. The pictures show which vector lies at each position of 128 bytes (32 banks).
//
//   kD >= 64: vec ^ row % 8                    kD = 32, two rows per 128 bytes: vec ^ row / 2 % 4
//     position  0 1 2 3 4 5 6 7                  position    0 1 2 3 4 5 6 7
//     row 0     0 1 2 3 4 5 6 7                  rows 0, 1   0 1 2 3 0 1 2 3
//     row 1     1 0 3 2 5 4 7 6                  rows 2, 3   1 0 3 2 1 0 3 2
//     row 2     2 3 0 1 6 7 4 5                  rows 4, 5   2 3 0 1 2 3 0 1
//     row 3     3 2 1 0 7 6 5 4                  rows 6, 7   3 2 1 0 3 2 1 0
//     row 4     4 5 6 7 0 1 2 3
//     row 5     5 4 7 6 1 0 3 2
//     row 6     6 7 4 5 2 3 0 1
//     row 7     7 6 5 4 3 2 1 0
template <int kD>
__device__ __forceinline__ int swizzled_offset(int row, int vec) {
  return row * kD + (vec ^ (kD >= 64 ? row % 8 : row / 2 % 4)) * kVecSize;
}

// Divides the vectors of a kRows x kD tile among kThreads threads. A thread copies vector `vec` of rows `row`,
// row + kRowStep, row + 2 * kRowStep, ..., kRowsPerThread in all.
template <int kRows, int kD, int kThreads>
struct CopyPartition {
  static constexpr int kVecsPerRow = kD / kVecSize, kRowStep = kThreads / kVecsPerRow,
                       kRowsPerThread = (kRows + kRowStep - 1) / kRowStep;
  static_assert(kRowStep % 8 == 0 && (kRows % kRowStep == 0 || kRows < kRowStep));

  int row, vec;

  __device__ __forceinline__ explicit CopyPartition(unsigned thread)
      : row(thread / kVecsPerRow), vec(thread % kVecsPerRow) {}
  // Returns false for a thread that has no row because the CTA has more threads than the tile has vectors.
  __device__ __forceinline__ bool has_rows() const { return kRows % kRowStep == 0 || row < kRows; }
  // Returns the swizzled offset of the thread's first vector. The others follow at steps of kRowStep * kD elements.
  __device__ __forceinline__ int offset() const { return swizzled_offset<kD>(row, vec); }
};

// Starts to copy rows [first, first + kRows) of `from` to a tile. Writes zeros for rows from `end` on and for columns
// from D on.
template <int kRows, int kD, int kThreads, typename T>
__device__ __forceinline__ void copy_tile_async(T* tile, const View<const T>& from, int first, int end, int D,
                                                unsigned thread = threadIdx.x) {
  using CopyPartition = CopyPartition<kRows, kD, kThreads>;
  const CopyPartition partition(thread);
  if (!partition.has_rows()) return;
  const int rows = partition.vec * kVecSize < D ? end - first - partition.row : 0;
  const T* source = from[first + partition.row] + partition.vec * kVecSize;
  T* to = tile + partition.offset();
#pragma unroll
  for (int i = 0; i < CopyPartition::kRowsPerThread; i++) {
    cp_async(to + i * CopyPartition::kRowStep * kD, source, i * CopyPartition::kRowStep < rows);
    source += CopyPartition::kRowStep * from.row_stride;
  }
}

// Loads mma fragments (ptx/mma.cuh) from a tile: four 8 x 8 matrices r[0] to r[3] of a 16 x 16 block, in one of two
// orders.
//
//   kRowsFirst            otherwise
//          cols              cols
//          0-7   8-15        0-7   8-15
//   rows  ------------      ------------
//   0-7   | r0 | r2 |       | r0 | r1 |
//   8-15  | r1 | r3 |       | r2 | r3 |
//
//   order       load()                                            load_transposed()
//   kRowsFirst  the A fragment of the block                       two B fragments, of the block's columns 0-7 and 8-15
//   otherwise   two B fragments, of the transposed block's        the A fragment of the transposed block
//               columns 0-7 and 8-15
template <int kD, bool kRowsFirst, typename T>
class FragmentLoader {
 public:
  __device__ __forceinline__ explicit FragmentLoader(const T* tile, unsigned thread = threadIdx.x)
      : tile_(reinterpret_cast<const char*>(tile)) {
    const int lane = thread % kWarpSize, eight = lane / 8 % 2, sixteen = lane / 16;
    lane_ = 2 * swizzled_offset<kD>(lane % 8 + 8 * (kRowsFirst ? eight : sixteen), kRowsFirst ? sixteen : eight);
  }

  // Loads the block at (row, column), which are multiples of 16.
  __device__ __forceinline__ void load(uint32_t (&r)[4], int row, int column) const { ldmatrix(r, at(row, column)); }
  __device__ __forceinline__ void load_transposed(uint32_t (&r)[4], int row, int column) const {
    ldmatrix_trans(r, at(row, column));
  }
  // Loads one B fragment: 16 rows and the 8 columns from `column`, a multiple of 8.
  __device__ __forceinline__ void load_transposed(uint32_t (&r)[2], int row, int column) const {
    static_assert(kRowsFirst);
    ldmatrix_trans(r, at(row, column));
  }

 private:
  // The swizzle is an xor with a function of row % 16. `row` is a multiple of 16, so it does not change the swizzle,
  // and `column` is added to the lane's offset by an xor.
  __device__ __forceinline__ const char* at(int row, int column) const {
    return tile_ + 2 * row * kD + (lane_ ^ 2 * column);
  }

  const char* tile_;
  int lane_;  // byte offset, in the tile, of the row address that this lane passes to ldmatrix for the block at (0, 0)
};

// Adds the product of a 16 x 16 A fragment and two B fragments to the accumulators d (columns 0-7) and e (columns
// 8-15).
template <typename T>
__device__ __forceinline__ void mma_m16n16k16(float (&d)[4], float (&e)[4], const uint32_t (&a)[4],
                                              const uint32_t (&b)[4]) {
  mma_m16n8k16<T>(d, a, {b[0], b[1]});
  mma_m16n8k16<T>(e, a, {b[2], b[3]});
}

// Rounds the accumulators x (columns 0-7) and y (columns 8-15) to T and packs them into one 16 x 16 A fragment.
template <typename T>
__device__ __forceinline__ void pack_a_fragment(uint32_t (&a)[4], const float (&x)[4], const float (&y)[4]) {
  a[0] = pack<T>(x[0], x[1]), a[1] = pack<T>(x[2], x[3]);
  a[2] = pack<T>(y[0], y[1]), a[3] = pack<T>(y[2], y[3]);
}

// Returns the dot product of two rows, in all of the kVecsPerRow neighbouring lanes that each hold one vector of both.
template <int kVecsPerRow, typename T>
__device__ __forceinline__ float row_dot(const Vec<T, kVecSize>& x, const Vec<T, kVecSize>& y) {
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kVecSize; j++) sum += x[j] * y[j];
#pragma unroll
  for (int offset = kVecsPerRow / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
  return sum;
}

// Sets the scores of keys that a query does not see to `value`. s[0] begins at query `query` and key `key`.
template <int kN>
__device__ __forceinline__ void mask_scores(float (&s)[kN][4], float value, int query, int key, int length,
                                            bool causal) {
  const int g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int end = causal ? min(length, query + g + 8 * h + 1) : length;
#pragma unroll
    for (int j = 0; j < kN; j++) {
#pragma unroll
      for (int k = 0; k < 2; k++) {
        if (key + 8 * j + 2 * t + k >= end) s[j][2 * h + k] = value;
      }
    }
  }
}

// Multiplies accumulators (16 rows, 8 kN columns) by factor0 (rows 0-7) and factor1 (rows 8-15), rounds them and stores
// them in a tile at (row, column).
template <int kD, typename T, int kN>
__device__ __forceinline__ void store_accum(T* tile, int row, int column, const float (&x)[kN][4], float factor0,
                                            float factor1) {
  const int g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < kN; j++) {
    const int vec = column / kVecSize + j;
    *reinterpret_cast<uint32_t*>(tile + swizzled_offset<kD>(row + g, vec) + 2 * t) =
        pack<T>(x[j][0] * factor0, x[j][1] * factor0);
    *reinterpret_cast<uint32_t*>(tile + swizzled_offset<kD>(row + g + 8, vec) + 2 * t) =
        pack<T>(x[j][2] * factor1, x[j][3] * factor1);
  }
}

// Stores two A fragments next to each other in rows [row, row + 16) of a tile of 32 columns.
template <int kD, typename T>
__device__ __forceinline__ void store_a_fragments(T* tile, int row, const uint32_t (&a)[2][4]) {
  const int g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < 2; j++) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
      *reinterpret_cast<uint32_t*>(tile + swizzled_offset<kD>(row + g + 8 * (k % 2), 2 * j + k / 2) + 2 * t) = a[j][k];
    }
  }
}

// Copies the kRows x kColumns block at (row, column) of a tile to `to`, whose row `first` receives the block's first
// row. Leaves out rows from `end` on and columns from D on. The calling warp must have written the block itself.
// Neighbouring lanes write neighbouring vectors.
template <int kRows, int kColumns, int kD, typename T>
__device__ __forceinline__ void store_tile(const View<T>& to, const T* tile, int row, int column, int first, int end,
                                           int D) {
  constexpr int kVecsPerRow = kColumns / kVecSize, kAll = kRows * kVecsPerRow;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < (kAll + kWarpSize - 1) / kWarpSize; i++) {
    const int index = i * kWarpSize + threadIdx.x % kWarpSize, r = index / kVecsPerRow;
    const int vec = column / kVecSize + index % kVecsPerRow;
    if (r < kRows && first + r < end && vec * kVecSize < D) {
      store_global(reinterpret_cast<uint4*>(to[first + r] + vec * kVecSize),
                   *reinterpret_cast<const uint4*>(tile + swizzled_offset<kD>(row + r, vec)));
    }
  }
}

// Writes zeros to rows [first, end) of `to`, with all threads of the CTA.
template <int kThreads, typename T>
__device__ __forceinline__ void store_zeros(const View<T>& to, int first, int end, int D) {
  const int vecs = D / kVecSize;
#pragma unroll 1
  for (int i = threadIdx.x; i < (end - first) * vecs; i += kThreads) {
    store_global(reinterpret_cast<uint4*>(to[first + i / vecs] + i % vecs * kVecSize), uint4{0, 0, 0, 0});
  }
}

// Writes zeros to the padding around a sequence, as far as it lies in rows [first, end) of `to`, which begins at the
// padded row 0.
template <int kThreads, typename T>
__device__ __forceinline__ void store_padding(const View<T>& to, const Sequence& sequence, int first, int end, int D) {
  store_zeros<kThreads>(to, first, min(end, sequence.start), D);
  store_zeros<kThreads>(to, max(first, sequence.start + sequence.length), end, D);
}

// A tile of rows of one head. Neighbouring CTAs have tiles of the same head, so that they find its k and v in the L2.
struct TileCoord {
  int tile, head, b, h;

  __device__ __forceinline__ TileCoord(unsigned index, int tiles, int H)
      : tile(index % tiles), head(index / tiles), b(head / H), h(head % H) {}
};

// Calls function(dropout, starts) with std::bool_constants that say whether the problem has them.
template <typename Function>
void with_options(const Problem& problem, Function&& function) {
  with_bool(problem.seed != nullptr, [&](auto dropout) {
    with_bool(problem.starts != nullptr, [&](auto starts) { function(dropout, starts); });
  });
}

// Calls function(std::integral_constant<int, kD>{}) for the smallest compiled kD that is at least D. Kernels fill the
// columns from D to kD with zeros.
template <typename Function>
void with_head_dim(int D, Function&& function) {
  with_int<32, 64, 128>(D <= 32 ? 32 : D <= 64 ? 64 : 128, function);
}

}  // namespace fastlm::attention
