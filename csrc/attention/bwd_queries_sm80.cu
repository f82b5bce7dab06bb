// The backward's pass over blocks of queries: dq = scale ds k, and delta = rowsum(do o) for the pass over keys.
//
// A block of four warps has 128 queries (64 where D > 64), whose q and do stay in registers, and goes through tiles of
// 32 keys and values. Three products, two of which the pass over keys computes again: what it costs to do without a
// float32 dq in memory (see bwd_keys_sm80.cu).
//
// Bytes a head: q, k, v, o and do are read and dq is written, 6bSD, and delta, 4S; tiles of keys and values are read
// once for each block of queries that sees them, all but the first time from the L2, and lse from there too.
#include "attention/mask.cuh"
#include "attention/sm80.h"
#include "attention/tiles_sm80.cuh"
#include "common/launch.cuh"

namespace fastlm::attention {

namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr int kKeys = 32;

template <int kD>
struct Shape {
  static constexpr int kRowTiles = kD <= 64 ? 2 : 1;  // of 16 queries, a warp
  static constexpr int kQueries = kWarps * kRowTiles * 16;
  static constexpr int kOwn = kQueries * kD, kTile = kKeys * kD;                              // elements
  static constexpr int kShared = (2 * kOwn + 4 * kTile) * 2 + kQueries * int(sizeof(float));  // bytes
};

// The delta of each query, times keep / 256: of o, which is read here, and of do, of which a thread reads what it has
// copied itself. Without a barrier, for the lanes of a row are neighbours.
template <int kD, typename input_t>
__device__ __forceinline__ void compute_delta(float* delta, const input_t* do_tile, const View<const input_t>& o,
                                              float* to, int64_t to_row, int first, int length, int D, float factor) {
  using Share = Share<Shape<kD>::kQueries, kD, kThreads>;
  const Share share(threadIdx.x);
  Vec<input_t, kChunk> own[Share::kCount];
#pragma unroll
  for (int i = 0; i < Share::kCount; i++) {
    const int row = first + share.row + i * Share::kStep;
    const bool inside = row < length && share.chunk * kChunk < D;
    own[i] = load_vec<kChunk, true>(o[row] + share.chunk * kChunk, inside ? kChunk : 0);
  }
  cp_async_wait<0>();
#pragma unroll
  for (int i = 0; i < Share::kCount; i++) {
    const int row = share.row + i * Share::kStep;
    const auto& chunk = *reinterpret_cast<const Vec<input_t, kChunk>*>(do_tile + share.at() + i * Share::kStep * kD);
    const float sum = row_dot<Share::kChunks>(own[i], chunk) * factor;
    if (share.chunk == 0) {
      delta[row] = sum;
      if (first + row < length) store_global(to + (first + row) * to_row, sum);
    }
  }
}

// ds of a tile of 16 queries and 32 keys, in place of p; dp is do v^T.
template <bool kDropout, int kRowTile>
__device__ __forceinline__ void score_gradient(float (&p)[4][4], const float (&dp)[4][4], const float (&delta)[2],
                                               uint32_t bits) {
#pragma unroll
  for (int j = 0; j < 4; j++) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const bool kept = !kDropout || (bits >> Mask<false>::place(2 * kRowTile + j / 2, k / 2, j % 2, k % 2) & 1) != 0;
      p[j][k] = (kept ? p[j][k] : 0.0f) * dp[j][k] - p[j][k] * delta[k / 2];
    }
  }
}

template <typename input_t, int kD, bool kDropout>
__global__ void __launch_bounds__(kThreads, 2) queries_kernel(const Backward<input_t> p, int tiles) {
  using S = Shape<kD>;
  constexpr int kRowTiles = S::kRowTiles, kQueries = S::kQueries;
  const Problem& problem = p.problem;
  const Place place(blockIdx.x, tiles, problem.H);
  const Sequence sequence(problem, place.b);
  const bool causal = problem.causal;
  const int length = sequence.length, D = problem.D;
  const int first = (causal ? tiles - 1 - place.tile : place.tile) * kQueries;  // of causal blocks the long ones begin
  const int warp = threadIdx.x / kWarpSize, g = threadIdx.x % kWarpSize / 4;
  const int row = warp * kRowTiles * 16, query = first + row;  // the warp's first
  const auto head = [&](const auto& view) { return view.at(place.b, place.h, sequence.start); };
  const auto dq_to = head(p.dq);
  if (first >= length) return store_zeros<kThreads>(dq_to, first, min(sequence.rows, first + kQueries), D);

  input_t* const q_tile = dynamic_shared<input_t>();
  input_t* const do_tile = q_tile + S::kOwn;
  input_t* const k_tiles = do_tile + S::kOwn;  // [2][kKeys][kD]
  input_t* const v_tiles = k_tiles + 2 * S::kTile;
  float* const deltas = reinterpret_cast<float*>(v_tiles + 2 * S::kTile);
  const auto k_from = head(p.k), v_from = head(p.v);
  const auto start = [&](int n) {
    start_tile<kKeys, kD, kThreads>(k_tiles + (n & 1) * S::kTile, k_from, n * kKeys, length, D);
    start_tile<kKeys, kD, kThreads>(v_tiles + (n & 1) * S::kTile, v_from, n * kKeys, length, D);
    cp_async_commit();
  };
  start_tile<kQueries, kD, kThreads>(q_tile, head(p.q), first, length, D);
  start_tile<kQueries, kD, kThreads>(do_tile, head(p.dout), first, length, D);
  start(0);
  const float keep = static_cast<float>(problem.keep) / kLevels;
  compute_delta<kD>(deltas, do_tile, head(p.o), p.delta + p.lse.offset(place.b, place.h, sequence.start), p.lse.row,
                    first, length, D, keep);
  __syncthreads();

  uint32_t q[kRowTiles][kD / 16][4], dout[kRowTiles][kD / 16][4];
  float lse[kRowTiles][2], delta[kRowTiles][2];
  const Blocks<kD, true, input_t> q_blocks(q_tile), do_blocks(do_tile);
  const auto lse_from = head(p.lse);
#pragma unroll
  for (int i = 0; i < kRowTiles; i++) {
#pragma unroll
    for (int k = 0; k < kD / 16; k++) {
      q_blocks.load(q[i][k], row + 16 * i, 16 * k);
      do_blocks.load(dout[i][k], row + 16 * i, 16 * k);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int at = row + 16 * i + 8 * h + g;
      delta[i][h] = deltas[at];
      lse[i][h] = first + at < length ? load_global<Use::kRepeated>(lse_from[first + at]) * kLog2E : INFINITY;
    }
  }

  const Mask<false> mask(problem, place.head);
  const float c = problem.scale * kLog2E;
  float dq[kRowTiles][kD / 8][4] = {};
  const int keys = causal ? min(length, first + kQueries) : length;
  const int steps = (keys + kKeys - 1) / kKeys;
  for (int n = 0; n < steps; n++) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is here, and the one before it has been read
    if (n + 1 < steps) start(n + 1);
    const int key = n * kKeys;
    if (causal && key >= query + 16 * kRowTiles) continue;  // none of this warp's queries sees these keys

    float s[kRowTiles][4][4] = {}, dp[kRowTiles][4][4] = {};
    const Blocks<kD, false, input_t> k_blocks(k_tiles + (n & 1) * S::kTile), v_blocks(v_tiles + (n & 1) * S::kTile);
#pragma unroll
    for (int k = 0; k < kD / 16; k++) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        uint32_t b[4];
        k_blocks.load(b, 16 * j, 16 * k);
#pragma unroll
        for (int i = 0; i < kRowTiles; i++) multiply<input_t>(s[i][2 * j], s[i][2 * j + 1], q[i][k], b);
        v_blocks.load(b, 16 * j, 16 * k);
#pragma unroll
        for (int i = 0; i < kRowTiles; i++) multiply<input_t>(dp[i][2 * j], dp[i][2 * j + 1], dout[i][k], b);
      }
    }
    uint32_t bits = 0;
    if constexpr (kDropout) {
      bits = mask.template bits<kRowTiles == 2>(query, key, {0, 16}, {16, 0});
    }
    const bool masked = key + kKeys > length || (causal && key + kKeys > query + 1);
#pragma unroll
    for (int i = 0; i < kRowTiles; i++) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
#pragma unroll
        for (int k = 0; k < 4; k++) s[i][j][k] = exp2_approx(s[i][j][k] * c - lse[i][k / 2]);
      }
      if (masked) hide(s[i], 0.0f, query + 16 * i, key, length, causal);
      if (i == 0) {
        score_gradient<kDropout, 0>(s[i], dp[i], delta[i], bits);
      } else {
        score_gradient<kDropout, 1>(s[i], dp[i], delta[i], bits);
      }
    }
    const Blocks<kD, true, input_t> k_rows(k_tiles + (n & 1) * S::kTile);
#pragma unroll
    for (int j = 0; j < 2; j++) {
      uint32_t a[kRowTiles][4], b[4];
#pragma unroll
      for (int i = 0; i < kRowTiles; i++) pack_operand<input_t>(a[i], s[i][2 * j], s[i][2 * j + 1]);
#pragma unroll
      for (int d = 0; d < kD / 16; d++) {
        k_rows.load_transposed(b, 16 * j, 16 * d);
#pragma unroll
        for (int i = 0; i < kRowTiles; i++) multiply<input_t>(dq[i][2 * d], dq[i][2 * d + 1], a[i], b);
      }
    }
  }

  // Rounded into this warp's rows of the tile of queries, which no other warp reads.
  __syncwarp();
  const float factor = problem.scale / keep;
#pragma unroll
  for (int i = 0; i < kRowTiles; i++) put<kD>(q_tile, row + 16 * i, 0, dq[i], factor, factor);
  store_tile<16 * kRowTiles, kD, kD>(dq_to, q_tile, row, 0, query, sequence.rows, D);
}

}  // namespace

template <typename input_t>
void backward_queries_sm80(const Backward<input_t>& p, int64_t heads, Stream stream) {
  with_head_dim(p.problem.D, [&](auto head_dim) {
    with_bool(p.problem.seed != nullptr, [&](auto dropout) {
      using S = Shape<head_dim>;
      const unsigned tiles = blocks(p.problem.longest, S::kQueries);
      launch(queries_kernel<input_t, head_dim, dropout>, blocks(heads * tiles, 1), kThreads, S::kShared, stream, p,
             static_cast<int>(tiles));
    });
  });
}

template void backward_queries_sm80(const Backward<half_t>&, int64_t, Stream);
template void backward_queries_sm80(const Backward<bf16_t>&, int64_t, Stream);

}  // namespace fastlm::attention
