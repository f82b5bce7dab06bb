// Tiles of rows in shared memory, and how warps read them as the operands of mma.
#pragma once

#include "attention/params.h"
#include "common/ptx.cuh"
#include "common/static_switch.h"

namespace fastlm::attention {

// Where the chunk of a row of a tile of kD columns lies: permuted among eight rows so that any chunk of theirs lies in
// eight different sets of four banks.
template <int kD>
__device__ __forceinline__ int chunk_at(int row, int chunk) {
  return row * kD + (chunk ^ (kD >= 64 ? row % 8 : row / 2 % 4)) * kChunk;
}

// How kThreads threads share the chunks of a tile of kRows x kD: each has a chunk of every kStep-th row.
template <int kRows, int kD, int kThreads>
struct Share {
  static constexpr int kChunks = kD / kChunk, kStep = kThreads / kChunks, kCount = (kRows + kStep - 1) / kStep;
  static_assert(kStep % 8 == 0 && (kRows % kStep == 0 || kRows < kStep));

  int row, chunk;  // row + i * kStep for i < kCount

  __device__ __forceinline__ explicit Share(unsigned thread) : row(thread / kChunks), chunk(thread % kChunks) {}
  // False for threads of a block that is larger than the tile.
  __device__ __forceinline__ bool any() const { return kRows % kStep == 0 || row < kRows; }
  // Where the chunk of row `row` lies; those of the other rows follow kStep * kD elements apart.
  __device__ __forceinline__ int at() const { return chunk_at<kD>(row, chunk); }
};

// Starts copying rows `first` to first + kRows of `from` to a tile; zeros from row `end` and column D on.
template <int kRows, int kD, int kThreads, typename T>
__device__ __forceinline__ void start_tile(T* tile, const View<const T>& from, int first, int end, int D,
                                           unsigned thread = threadIdx.x) {
  using Share = Share<kRows, kD, kThreads>;
  const Share share(thread);
  if (!share.any()) return;
  const int rows = share.chunk * kChunk < D ? end - first - share.row : 0;
  const T* source = from[first + share.row] + share.chunk * kChunk;
  T* to = tile + share.at();
#pragma unroll
  for (int i = 0; i < Share::kCount; i++) {
    cp_async(to + i * Share::kStep * kD, source, i * Share::kStep < rows);
    source += Share::kStep * from.row;
  }
}

// The operands of mma in a tile: 16 x 16 blocks, whose four 8 x 8 matrices come in two orders.
//   kDown: rows 0-7, then 8-15, of the first eight columns, then of the last. That is a 16 x 16 operand a, or with
//     `transposed` two operands b, of columns 0-7 and 8-15, where rows of the tile are rows of b.
//   Otherwise the columns come first: with `transposed` the operand a whose columns are rows of the tile, or two
//     operands b, whose columns are rows 0-7 and 8-15 of the tile.
template <int kD, bool kDown, typename T>
class Blocks {
 public:
  __device__ __forceinline__ explicit Blocks(const T* tile, unsigned thread = threadIdx.x)
      : tile_(reinterpret_cast<const char*>(tile)) {
    const int lane = thread % kWarpSize, eight = lane / 8 % 2, sixteen = lane / 16;
    lane_ = 2 * chunk_at<kD>(lane % 8 + 8 * (kDown ? eight : sixteen), kDown ? sixteen : eight);
  }

  // The block at a row and column that are multiples of 16.
  __device__ __forceinline__ void load(uint32_t (&r)[4], int row, int column) const { ldmatrix(r, at(row, column)); }
  __device__ __forceinline__ void load_transposed(uint32_t (&r)[4], int row, int column) const {
    ldmatrix_trans(r, at(row, column));
  }
  // Of the 8 columns from a multiple of 8 on: one operand b.
  __device__ __forceinline__ void load_transposed(uint32_t (&r)[2], int row, int column) const {
    static_assert(kDown);
    ldmatrix_trans(r, at(row, column));
  }

 private:
  // 16 rows further chunks are permuted alike, and a column adds to a chunk's number before it is permuted by xor.
  __device__ __forceinline__ const char* at(int row, int column) const {
    return tile_ + 2 * row * kD + (lane_ ^ 2 * column);
  }

  const char* tile_;
  int lane_;  // bytes from the tile to this lane's row of the block at row 0 and column 0
};

// d and e += a times the two operands b.
template <typename T>
__device__ __forceinline__ void multiply(float (&d)[4], float (&e)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
  mma_m16n8k16<T>(d, a, {b[0], b[1]});
  mma_m16n8k16<T>(e, a, {b[2], b[3]});
}

// Accumulators of columns 0-7 and 8-15, rounded, as the operand a of 16 x 16.
template <typename T>
__device__ __forceinline__ void pack_operand(uint32_t (&a)[4], const float (&x)[4], const float (&y)[4]) {
  a[0] = pack<T>(x[0], x[1]), a[1] = pack<T>(x[2], x[3]);
  a[2] = pack<T>(y[0], y[1]), a[3] = pack<T>(y[2], y[3]);
}

// The product of two rows, a chunk of each in each of kChunks neighbouring lanes, in all of these.
template <int kChunks, typename T>
__device__ __forceinline__ float row_dot(const Vec<T, kChunk>& x, const Vec<T, kChunk>& y) {
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kChunk; j++) sum += x[j] * y[j];
#pragma unroll
  for (int by = kChunks / 2; by > 0; by /= 2) sum += __shfl_xor_sync(kAllLanes, sum, by);
  return sum;
}

// `value` for the scores of keys that a query does not see. s is that of queries `query` on and keys `key` on.
template <int kN>
__device__ __forceinline__ void hide(float (&s)[kN][4], float value, int query, int key, int length, bool causal) {
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

// Accumulators (16 lines, 8 kN columns) rounded, into rows `row` to row + 16 and columns from `column` on of a tile.
template <int kD, typename T, int kN>
__device__ __forceinline__ void put(T* tile, int row, int column, const float (&x)[kN][4], float factor0,
                                    float factor1) {
  const int g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < kN; j++) {
    const int chunk = column / kChunk + j;
    *reinterpret_cast<uint32_t*>(tile + chunk_at<kD>(row + g, chunk) + 2 * t) =
        pack<T>(x[j][0] * factor0, x[j][1] * factor0);
    *reinterpret_cast<uint32_t*>(tile + chunk_at<kD>(row + g + 8, chunk) + 2 * t) =
        pack<T>(x[j][2] * factor1, x[j][3] * factor1);
  }
}

// Two operands a beside each other, into rows `row` to row + 16 of a tile of 32 columns.
template <int kD, typename T>
__device__ __forceinline__ void put_operand(T* tile, int row, const uint32_t (&a)[2][4]) {
  const int g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < 2; j++) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
      *reinterpret_cast<uint32_t*>(tile + chunk_at<kD>(row + g + 8 * (k % 2), 2 * j + k / 2) + 2 * t) = a[j][k];
    }
  }
}

// What a warp has put into kRows rows from `row` on and kColumns columns from `column` on of a tile, to rows `first` on
// of `to`, short of row `end` and column D. The lanes of a row write neighbouring chunks.
template <int kRows, int kColumns, int kD, typename T>
__device__ __forceinline__ void store_tile(const View<T>& to, const T* tile, int row, int column, int first, int end,
                                           int D) {
  constexpr int kChunks = kColumns / kChunk, kAll = kRows * kChunks;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < (kAll + kWarpSize - 1) / kWarpSize; i++) {
    const int index = i * kWarpSize + threadIdx.x % kWarpSize, r = index / kChunks;
    const int chunk = column / kChunk + index % kChunks;
    if (r < kRows && first + r < end && chunk * kChunk < D) {
      store_global(reinterpret_cast<uint4*>(to[first + r] + chunk * kChunk),
                   *reinterpret_cast<const uint4*>(tile + chunk_at<kD>(row + r, chunk)));
    }
  }
}

// Zeros to rows `first` to `end` of `to`, by all threads of the block.
template <int kThreads, typename T>
__device__ __forceinline__ void store_zeros(const View<T>& to, int first, int end, int D) {
  const int chunks = D / kChunk;
#pragma unroll 1
  for (int i = threadIdx.x; i < (end - first) * chunks; i += kThreads) {
    store_global(reinterpret_cast<uint4*>(to[first + i / chunks] + i % chunks * kChunk), uint4{0, 0, 0, 0});
  }
}

// Which part of the work it is: those of one head are neighbours, so that they find its keys and values in the L2.
struct Place {
  int tile, head, b, h;

  __device__ __forceinline__ Place(unsigned part, int tiles, int H)
      : tile(part % tiles), head(part / tiles), b(head / H), h(head % H) {}
};

// function(std::integral_constant<int, kD>{}) for the smallest kD that a kernel is compiled for and D fits in; columns
// from D on are zeros.
template <typename Function>
void with_head_dim(int D, Function&& function) {
  with_int<32, 64, 128>(D <= 32 ? 32 : D <= 64 ? 64 : 128, function);
}

}  // namespace fastlm::attention
