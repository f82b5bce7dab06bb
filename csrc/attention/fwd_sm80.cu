// The forward pass: flash attention (Dao et al. 2022, algorithm 1) with the loops exchanged, dropout inside.
//
// A block of four warps has 128 queries (64 where D > 64) and goes through tiles of 64 keys and values, the next of
// which is on its way while one is worked on. A warp has 32 queries, so that each operand of keys or values that it
// reads from shared memory serves two products: with 16 the reads, 128 bytes a clock, would take as long as the
// products. Queries are read anew for each tile, a fifth of all reads; in registers, ptxas would spill others for them.
//
// Of short sequences, whose queries are one block each, a multiprocessor's blocks stay and go from head to head: the
// keys and values of the next are on their way while the last tile of one is worked on, for which a new block would
// have to wait.
//
// Bytes a head, b those of an element: q, k and v are read and o is written, 4bSD, and lse, 4S. Tiles of keys are read
// once for each block of queries that sees them, all but the first time from the L2. For 65,536 tokens and 12 heads of
// 64 in bf16, S = 512, the floor of an H100 is 135 us, of HBM at 3.0 TB/s as of the exponentials; computed, not
// measured.
#include <algorithm>

#include "attention/mask.cuh"
#include "attention/sm80.h"
#include "attention/tiles_sm80.cuh"
#include "common/launch.cuh"

namespace fastlm::attention {

namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize, kBlocks = 2;  // on a multiprocessor
constexpr int kKeys = 64;

template <int kD>
struct Shape {
  static constexpr int kRowTiles = kD <= 64 ? 2 : 1;  // of 16 queries, a warp
  static constexpr int kQueries = kWarps * kRowTiles * 16;
  static constexpr int kTile = kKeys * kD;                         // elements
  static constexpr int kShared = (kQueries + 4 * kKeys) * kD * 2;  // bytes: q, and two stages of k and v
};

// The running maximum and sum of the rows of a warp, rows g and g + 8 of each tile of 16 in a lane (Milakov and
// Gimelshein 2018). `total` is that of the lane's columns alone.
template <int kRowTiles>
struct Softmax {
  float top[kRowTiles][2], total[kRowTiles][2];

  __device__ __forceinline__ Softmax() {
#pragma unroll
    for (int i = 0; i < kRowTiles; i++) {
      top[i][0] = top[i][1] = -INFINITY;
      total[i][0] = total[i][1] = 0.0f;
    }
  }

  // Scores of tile i become probabilities, short of the division by their sum: 2^(c s - c top); what was computed with
  // an older maximum is to be multiplied by `older`.
  template <int kN>
  __device__ __forceinline__ void step(int i, float (&s)[kN][4], float c, float (&older)[2]) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float most = top[i][h];
#pragma unroll
      for (int j = 0; j < kN; j++) most = fmaxf(most, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
      older[h] = exp2_approx((top[i][h] - most) * c);
      top[i][h] = most;
      total[i][h] *= older[h];
#pragma unroll
      for (int j = 0; j < kN; j++) {
#pragma unroll
        for (int k = 2 * h; k < 2 * h + 2; k++) {
          s[j][k] = exp2_approx(s[j][k] * c - most * c);
          total[i][h] += s[j][k];
        }
      }
    }
  }

  // The sum of a whole row.
  __device__ __forceinline__ float sum(int i, int h) const {
    float all = total[i][h];
    all += __shfl_xor_sync(kAllLanes, all, 1);
    return all + __shfl_xor_sync(kAllLanes, all, 2);
  }
};

// Zeros for the probabilities that the mask drops, in the operands a of a tile of 16 queries.
__device__ __forceinline__ void drop(uint32_t (&a)[kKeys / 16][4], uint32_t bits) {
#pragma unroll
  for (int j = 0; j < kKeys / 16; j++) {
#pragma unroll
    for (int k = 0; k < 4; k++) a[j][k] &= kept_halves(bits, Mask<false>::place(j, k % 2, k / 2, 0));
  }
}

// A tile of keys and values for a warp's queries, which lie from `row` on in theirs: scores, probabilities, their part
// of o.
template <typename input_t, int kD, bool kDropout>
__device__ __forceinline__ void attend(float (&o)[Shape<kD>::kRowTiles][kD / 8][4],
                                       Softmax<Shape<kD>::kRowTiles>& softmax, const input_t* q_tile,
                                       const input_t* k_tile, const input_t* v_tile, int row, int query, int key,
                                       int length, bool causal, float c, const Mask<false>& mask, unsigned thread) {
  constexpr int kRowTiles = Shape<kD>::kRowTiles;
  float s[kRowTiles][kKeys / 8][4] = {};
  const Blocks<kD, true, input_t> q_blocks(q_tile, thread);
  const Blocks<kD, false, input_t> k_blocks(k_tile, thread);
#pragma unroll
  for (int k = 0; k < kD / 16; k++) {
    uint32_t q[kRowTiles][4];
#pragma unroll
    for (int i = 0; i < kRowTiles; i++) q_blocks.load(q[i], row + 16 * i, 16 * k);
#pragma unroll
    for (int j = 0; j < kKeys / 16; j++) {
      uint32_t b[4];
      k_blocks.load(b, 16 * j, 16 * k);
#pragma unroll
      for (int i = 0; i < kRowTiles; i++) multiply<input_t>(s[i][2 * j], s[i][2 * j + 1], q[i], b);
    }
  }
  if (key + kKeys > length || (causal && key + kKeys > query + 1)) {
#pragma unroll
    for (int i = 0; i < kRowTiles; i++) hide(s[i], -INFINITY, query + 16 * i, key, length, causal);
  }
  uint32_t a[kRowTiles][kKeys / 16][4];
#pragma unroll
  for (int i = 0; i < kRowTiles; i++) {
    float older[2];
    softmax.step(i, s[i], c, older);
#pragma unroll
    for (int j = 0; j < kKeys / 16; j++) pack_operand<input_t>(a[i][j], s[i][2 * j], s[i][2 * j + 1]);
    if constexpr (kDropout) {
      drop(a[i], mask.template bits<true>(query + 16 * i, key, {0, 16}, {0, 32}, thread));
    }
#pragma unroll
    for (int j = 0; j < kD / 8; j++) {
      o[i][j][0] *= older[0], o[i][j][1] *= older[0];
      o[i][j][2] *= older[1], o[i][j][3] *= older[1];
    }
  }
  const Blocks<kD, true, input_t> v_blocks(v_tile, thread);
#pragma unroll
  for (int j = 0; j < kKeys / 16; j++) {
#pragma unroll
    for (int d = 0; d < kD / 16; d++) {
      uint32_t b[4];
      v_blocks.load_transposed(b, 16 * j, 16 * d);
#pragma unroll
      for (int i = 0; i < kRowTiles; i++) multiply<input_t>(o[i][2 * d], o[i][2 * d + 1], a[i][j], b);
    }
  }
}

// A head's block of queries, and how many tiles of keys it sees: none past a sequence's end, or past the last part.
struct Part {
  Place place;
  Sequence sequence;
  int first, steps;

  __device__ __forceinline__ Part(const Problem& p, unsigned part, unsigned parts, int tiles, int queries)
      : place(min(part, parts - 1), tiles, p.H), sequence(p, place.b) {
    first = (p.causal ? tiles - 1 - place.tile : place.tile) * queries;  // of causal blocks the long ones begin
    const int keys = p.causal ? min(sequence.length, first + queries) : sequence.length;
    steps = part < parts && first < sequence.length ? (keys + kKeys - 1) / kKeys : 0;
  }

  template <typename T>
  __device__ __forceinline__ View<T> of(const View<T>& view) const {
    return view.at(place.b, place.h, sequence.start);
  }
};

// Nothing is to be seen from these queries on: zeros, and log-sum-exps that make probabilities of zero.
template <int kQueries, typename input_t>
__device__ __forceinline__ void store_nothing(const Forward<input_t>& p, const Part& part) {
  const int end = min(part.sequence.rows, part.first + kQueries);
  const auto lse_to = part.of(p.lse);
  store_zeros<kThreads>(part.of(p.o), part.first, end, p.problem.D);
  for (int i = part.first + threadIdx.x; i < end; i += kThreads) store_global(lse_to[i], INFINITY);
}

// A warp's rows of o, by way of its rows of the tile of queries, which no other warp reads, and their log-sum-exps.
template <typename input_t, int kD>
__device__ __forceinline__ void store_rows(const Forward<input_t>& p, const Part& part, int row, input_t* q_tile,
                                           float (&o)[Shape<kD>::kRowTiles][kD / 8][4],
                                           const Softmax<Shape<kD>::kRowTiles>& softmax) {
  constexpr int kRowTiles = Shape<kD>::kRowTiles;
  const Problem& problem = p.problem;
  const int g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4, query = part.first + row;
  const auto lse_to = part.of(p.lse);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kRowTiles; i++) {
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float sum = softmax.sum(i, h);
      const int at = query + 16 * i + 8 * h + g;
      const bool inside = at < part.sequence.length;
      factor[h] = inside ? static_cast<float>(kLevels) / problem.keep / sum : 0.0f;
      if (t == 0 && at < part.sequence.rows) {
        store_global(lse_to[at], inside ? softmax.top[i][h] * problem.scale + logf(sum) : INFINITY);
      }
    }
    put<kD>(q_tile, row + 16 * i, 0, o[i], factor[0], factor[1]);
  }
  store_tile<16 * kRowTiles, kD, kD>(part.of(p.o), q_tile, row, 0, query, part.sequence.rows, problem.D);
}

template <typename input_t, int kD, bool kDropout>
__global__ void __launch_bounds__(kThreads, kBlocks)
    forward_kernel(const Forward<input_t> p, int tiles, unsigned parts) {
  using S = Shape<kD>;
  constexpr int kRowTiles = S::kRowTiles, kQueries = S::kQueries;
  const Problem& problem = p.problem;
  // The first row of a thread's warp.
  const auto row = [](unsigned thread) { return static_cast<int>(thread / kWarpSize * kRowTiles * 16); };
  input_t* const q_tile = dynamic_shared<input_t>();
  input_t* const k_tiles = q_tile + kQueries * kD;  // [2][kKeys][kD]
  input_t* const v_tiles = k_tiles + 2 * S::kTile;

  const auto start_queries = [&](const Part& part) {
    if (part.steps == 0) return;
    start_tile<kQueries, kD, kThreads>(q_tile, part.of(p.q), part.first, part.sequence.length, problem.D);
    cp_async_commit();
  };
  const auto start_keys = [&](const Part& part, int n, int stage, unsigned thread) {
    if (n >= part.steps) return;
    const int length = part.sequence.length, at = stage * S::kTile;
    start_tile<kKeys, kD, kThreads>(k_tiles + at, part.of(p.k), n * kKeys, length, problem.D, thread);
    start_tile<kKeys, kD, kThreads>(v_tiles + at, part.of(p.v), n * kKeys, length, problem.D, thread);
    cp_async_commit();
  };
  const auto nth = [&](unsigned part) { return Part(problem, part, parts, tiles, kQueries); };

  int stage = 0;  // where the tile of keys and values lies that is next to be worked on
  start_queries(nth(blockIdx.x));
  start_keys(nth(blockIdx.x), 0, stage, threadIdx.x);
  for (unsigned index = blockIdx.x; index < parts; index += gridDim.x) {
    const unsigned next = index + gridDim.x;
    const Part part = nth(index);
    if (part.steps == 0) {
      store_nothing<kQueries>(p, part);
      start_queries(nth(next));
      start_keys(nth(next), 0, stage, threadIdx.x);
      continue;
    }
    const Mask<false> mask(problem, part.place.head);
    float o[kRowTiles][kD / 8][4] = {};
    Softmax<kRowTiles> softmax;
    for (int n = 0; n < part.steps; n++, stage ^= 1) {
      const unsigned thread = anew(threadIdx.x);  // before the loop all addresses would take too many registers
      cp_async_wait<0>();
      __syncthreads();  // this tile is here, and the one before it has been read
      if (n + 1 < part.steps) {
        start_keys(part, n + 1, stage ^ 1, thread);
      } else {
        start_keys(nth(next), 0, stage ^ 1, thread);
      }
      const int query = part.first + row(thread);
      if (problem.causal && n * kKeys >= query + 16 * kRowTiles) continue;  // none of the warp's queries sees these
      attend<input_t, kD, kDropout>(o, softmax, q_tile, k_tiles + stage * S::kTile, v_tiles + stage * S::kTile,
                                    row(thread), query, n * kKeys, part.sequence.length, problem.causal,
                                    problem.scale * kLog2E, mask, thread);
    }
    store_rows<input_t, kD>(p, nth(anew(index)), row(anew(threadIdx.x)), q_tile, o, softmax);
    if (next >= parts) break;
    __syncthreads();  // all rows of o have left the tile of queries
    start_queries(nth(next));
  }
}

}  // namespace

template <typename input_t>
void forward_sm80(const Forward<input_t>& p, int64_t heads, Stream stream) {
  const auto run = [&](auto head_dim, auto dropout) {
    using S = Shape<head_dim>;
    const unsigned tiles = blocks(p.problem.longest, S::kQueries), parts = blocks(heads * tiles, 1);
    // Of longer sequences parts differ in length: let the chip give them to whoever is free.
    const unsigned resident = tiles == 1 ? kBlocks * multiprocessors() : parts;
    launch(forward_kernel<input_t, head_dim, dropout>, std::min(parts, resident), kThreads, S::kShared, stream, p,
           static_cast<int>(tiles), parts);
  };
  with_head_dim(p.problem.D, [&](auto head_dim) {
    with_bool(p.problem.seed != nullptr, [&](auto dropout) { run(head_dim, dropout); });
  });
}

template void forward_sm80(const Forward<half_t>&, int64_t, Stream);
template void forward_sm80(const Forward<bf16_t>&, int64_t, Stream);

}  // namespace fastlm::attention
