// The backward over tiles of keys: dk = scale ds^T q and dv = (z p)^T do, with the scaled dropout mask z (params.h). If
// one CTA holds all keys of a sequence, it also computes dq = scale ds k. Deterministic, without atomics.
//
// A warp holds 32 keys (16 if D > 64). It accumulates their dk and dv in registers over tiles of 32 queries. The
// accumulators of s^T and dp^T are packed in place into the A fragments of these products. ds goes through shared
// memory to the product with k, which the warps divide by queries and columns (compute_dq_tile).
//
// dq is a sum over keys. The deterministic ways to compute it, in bytes per head, with b bytes per element:
//
//   method                                                           bytes
//   one pass; a CTA holds all keys                                   8bSD + 4S: q, k, v, o, do, lse in, dq, dk, dv out
//   two passes, dq and then dkv; two of seven products done twice    12bSD + 12S
//   one pass; n CTAs add to a float32 dq in a fixed order            8bSD + 8nSD
//
// If n >= 2, the third method moves more bytes than the second, and its CTAs wait for each other. So backward_sm80 runs
// one pass if one CTA can hold the keys: up to 128 with four warps and 256 with eight (half as many if D > 64), if the
// chip has the shared memory. Otherwise it runs two passes. In two passes each CTA reads each query tile that sees its
// keys once; all but the first CTA find it in the L2. For 65,536 tokens and 12 heads of 64 in bf16 the lower bound on
// an H100 is 269 us at S = 128 (set by HBM) and 322 us at S = 512 (set by the five products); both computed, not
// measured.
//
// This kernel is not persistent, unlike the forward: the next head's k and v, 32 KB at D = 64, would leave room for one
// CTA instead of two on an SM of an A100.
#include "attention/mask.cuh"
#include "attention/sm80.h"
#include "attention/tiles_sm80.cuh"
#include "common/launch.cuh"

namespace fastlm::attention {

namespace {

constexpr int kBlockM = 32;

template <int kD_, int kWarps_, bool kOnePass_>
struct Shape {
  static constexpr int kD = kD_, kWarps = kWarps_, kThreads = kWarps * kWarpSize;
  static constexpr bool kOnePass = kOnePass_;
  static constexpr int kRowTiles = kD <= 64 ? 2 : 1;  // per warp, of 16 keys
  static constexpr int kBlockN = kWarps * kRowTiles * 16;
  static constexpr int kKvElements = kBlockN * kD, kQElements = kBlockM * kD;
  // Holds k and v, and two stages of q, do, lse and delta. One pass also needs one stage of o, and ds.
  static constexpr int kSharedBytes =
      (2 * kKvElements + 4 * kQElements + (kOnePass ? kQElements + kBlockN * kBlockM : 0)) * 2 +
      4 * kBlockM * int(sizeof(float));

  // Returns the first key of a thread's warp.
  __device__ __forceinline__ static int row(unsigned thread) { return thread / kWarpSize * kRowTiles * 16; }
};

// The layout of a CTA's shared memory.
template <typename S, typename input_t>
struct SharedMemory {
  input_t *k, *v, *o, *ds;

  __device__ __forceinline__ SharedMemory() {
    k = dynamic_shared<input_t>();
    v = k + S::kKvElements;
    o = reinterpret_cast<input_t*>(lse(2));
    ds = o + S::kQElements;
  }
  __device__ __forceinline__ input_t* q(int stage) const { return v + S::kKvElements + stage * S::kQElements; }
  __device__ __forceinline__ input_t* dout(int stage) const { return q(2 + stage); }
  __device__ __forceinline__ float* lse(int stage) const {
    return reinterpret_cast<float*>(q(4)) + stage * 2 * kBlockM;
  }
  __device__ __forceinline__ float* delta(int stage) const { return lse(stage) + kBlockM; }
};

// Loads tiles of queries: q, do and lse, and also o (one pass) or delta (two passes). All are zeros for queries past
// the length, so these queries add zeros to dk and dv.
template <typename S, typename input_t>
struct QueryTileLoader {
  const BackwardParams<input_t>& p;
  View<const input_t> q, o, dout;
  int64_t stats_offset;  // of the head in lse and delta; one offset takes fewer registers than two pointers
  int length, D;
  float keep;  // the keep probability, from 0 to 1

  __device__ __forceinline__ void load_async(const SharedMemory<S, input_t>& shared, int m, unsigned thread) const {
    const int first = m * kBlockM, stage = m & 1, row = first + thread;
    copy_tile_async<kBlockM, S::kD, S::kThreads>(shared.q(stage), q, first, length, D, thread);
    copy_tile_async<kBlockM, S::kD, S::kThreads>(shared.dout(stage), dout, first, length, D, thread);
    if constexpr (S::kOnePass) copy_tile_async<kBlockM, S::kD, S::kThreads>(shared.o, o, first, length, D, thread);
    if (thread < kBlockM) {
      const int64_t offset = stats_offset + row * p.lse.row_stride;
      cp_async<4>(shared.lse(stage) + thread, p.lse.data + offset, row < length);
      if constexpr (!S::kOnePass) cp_async<4>(shared.delta(stage) + thread, p.delta + offset, row < length);
    }
    cp_async_commit();
  }

  // Waits for tile m. Ends with a barrier, after which all warps have also finished the previous tile.
  __device__ __forceinline__ void wait(const SharedMemory<S, input_t>& shared, int m, unsigned thread) const {
    cp_async_wait<0>();
    if constexpr (S::kOnePass) compute_delta(shared, m & 1, thread);
    __syncthreads();
  }

  // Computes delta * keep / 256. No barrier is needed, because a thread reads only vectors that it copied itself.
  __device__ __forceinline__ void compute_delta(const SharedMemory<S, input_t>& shared, int stage,
                                                unsigned thread) const {
    using CopyPartition = CopyPartition<kBlockM, S::kD, S::kThreads>;
    const CopyPartition partition(thread);
    if (!partition.has_rows()) return;  // whole warps return, so all lanes of a warp take part in row_dot's shuffles
#pragma unroll
    for (int i = 0; i < CopyPartition::kRowsPerThread; i++) {
      const int offset = partition.offset() + i * CopyPartition::kRowStep * S::kD;
      const auto& o_vec = *reinterpret_cast<const Vec<input_t, kVecSize>*>(shared.o + offset);
      const auto& do_vec = *reinterpret_cast<const Vec<input_t, kVecSize>*>(shared.dout(stage) + offset);
      const float sum = row_dot<CopyPartition::kVecsPerRow>(o_vec, do_vec);
      if (partition.vec == 0) shared.delta(stage)[partition.row + i * CopyPartition::kRowStep] = sum * keep;
    }
  }
};

// Computes s^T = k q^T or dp^T = v do^T for a warp's keys, which begin at row `row` of the tile kv, and all queries of
// a tile.
template <typename S, typename input_t>
__device__ __forceinline__ void transposed_scores(float (&s)[S::kRowTiles][4][4], const input_t* kv, int row,
                                                  const input_t* queries, unsigned thread) {
  const FragmentLoader<S::kD, true, input_t> kv_loader(kv, thread);
  const FragmentLoader<S::kD, false, input_t> q_loader(queries, thread);
#pragma unroll
  for (int i = 0; i < S::kRowTiles; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) s[i][j][0] = s[i][j][1] = s[i][j][2] = s[i][j][3] = 0.0f;
  }
#pragma unroll 2  // with more, ptxas would spill
  for (int k = 0; k < S::kD / 16; k++) {
    uint32_t a[S::kRowTiles][4], b[4];
#pragma unroll
    for (int i = 0; i < S::kRowTiles; i++) kv_loader.load(a[i], row + 16 * i, 16 * k);
#pragma unroll
    for (int j = 0; j < 2; j++) {
      q_loader.load(b, 16 * j, 16 * k);
#pragma unroll
      for (int i = 0; i < S::kRowTiles; i++) mma_m16n16k16<input_t>(s[i][2 * j], s[i][2 * j + 1], a[i], b);
    }
  }
}

// Adds (z p)^T do to dv, or ds^T q to dk. `a` holds (z p)^T or ds^T, `queries` is the tile of do or q.
template <typename S, typename input_t>
__device__ __forceinline__ void accumulate(float (&sum)[S::kRowTiles][S::kD / 8][4],
                                           const uint32_t (&a)[S::kRowTiles][2][4], const input_t* queries,
                                           unsigned thread) {
  const FragmentLoader<S::kD, true, input_t> q_loader(queries, thread);
#pragma unroll
  for (int j = 0; j < 2; j++) {
#pragma unroll
    for (int d = 0; d < S::kD / 16; d++) {
      uint32_t b[4];
      q_loader.load_transposed(b, 16 * j, 16 * d);
#pragma unroll
      for (int i = 0; i < S::kRowTiles; i++) mma_m16n16k16<input_t>(sum[i][2 * d], sum[i][2 * d + 1], a[i][j], b);
    }
  }
}

template <typename S>
using Scores = float[S::kRowTiles][4][4];  // accumulators of 16 keys x 8 queries

template <typename S, typename Function>
__device__ __forceinline__ void for_each_score(Function&& function) {
#pragma unroll
  for (int i = 0; i < S::kRowTiles; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
#pragma unroll
      for (int k = 0; k < 4; k++) function(i, j, k);
    }
  }
}

template <typename S>
__device__ __forceinline__ bool kept(uint32_t bits, int i, int j, int k) {
  return (bits >> DropoutMask<true>::bit_index(2 * i + j / 2, k / 2, j % 2, k % 2) & 1) != 0;
}

// Loads this lane's values of lse or delta, for queries 8j + 2t and 8j + 2t + 1 with j < 4.
__device__ __forceinline__ void load_query_values(float (&x)[8], const float* values, unsigned thread) {
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float2 two = *reinterpret_cast<const float2*>(values + 8 * j + 2 * (thread % 4));
    x[2 * j] = two.x, x[2 * j + 1] = two.y;
  }
}

template <typename S, typename input_t>
__device__ __forceinline__ void pack_a_fragments(uint32_t (&a)[S::kRowTiles][2][4], const Scores<S>& s) {
#pragma unroll
  for (int i = 0; i < S::kRowTiles; i++) {
    pack_a_fragment<input_t>(a[i][0], s[i][0], s[i][1]);
    pack_a_fragment<input_t>(a[i][1], s[i][2], s[i][3]);
  }
}

// Computes a warp's part of dq for a tile of queries and stores it. The CTA holds all keys; these queries see the keys
// before `key_end`. dq goes through the Q tile, which no warp reads any more.
template <typename S, typename input_t>
__device__ __forceinline__ void compute_dq_tile(const SharedMemory<S, input_t>& shared, input_t* q_tile,
                                                const View<input_t>& to, int first, int key_end, int rows, int D,
                                                float factor, unsigned thread) {
  constexpr int kColumns = S::kD * 2 / S::kWarps;  // two warps share the columns; each has 16 queries
  const int warp = thread / kWarpSize, row = warp % 2 * 16, column = warp / 2 * kColumns;
  const FragmentLoader<kBlockM, false, input_t> ds_loader(shared.ds, thread);
  const FragmentLoader<S::kD, true, input_t> k_loader(shared.k, thread);
  float dq[kColumns / 8][4] = {};
#pragma unroll
  for (int k = 0; k < S::kBlockN; k += 16) {
    if (k >= key_end) break;
    uint32_t a[4];
    ds_loader.load_transposed(a, k, row);
    if constexpr (kColumns == 8) {
      uint32_t b[2];
      k_loader.load_transposed(b, k, column);
      mma_m16n8k16<input_t>(dq[0], a, b);
    } else {
#pragma unroll
      for (int d = 0; d < kColumns / 16; d++) {
        uint32_t b[4];
        k_loader.load_transposed(b, k, column + 16 * d);
        mma_m16n16k16<input_t>(dq[2 * d], dq[2 * d + 1], a, b);
      }
    }
  }
  store_accum<S::kD>(q_tile, row, column, dq, factor, factor);
  store_tile<16, kColumns, S::kD>(to, q_tile, row, column, first + row, rows, D);
}

template <typename input_t, typename S, bool kDropout, bool kStarts>
__global__ void __launch_bounds__(S::kThreads, 8 / S::kWarps) dkv_kernel(const BackwardParams<input_t> p, int tiles) {
  constexpr int kRowTiles = S::kRowTiles, kD = S::kD, kThreads = S::kThreads;
  const Problem& problem = p.problem;
  const TileCoord coord(blockIdx.x, tiles, problem.H);
  const Sequence sequence(problem, coord.b, std::bool_constant<kStarts>());
  const bool causal = problem.causal;
  const int length = sequence.length, D = problem.D;
  const int first_key = coord.tile * S::kBlockN, row_end = min(sequence.rows, first_key + S::kBlockN);
  const auto head = [&](const auto& view) { return view.at(coord.b, coord.h, sequence.start); };
  const int tile_end = (length + kBlockM - 1) / kBlockM;
  if constexpr (kStarts) {
    const int padding_end = min(problem.max_seqlen, first_key + S::kBlockN);
    const auto store = [&](const View<input_t>& to) {
      store_padding<kThreads>(to.at(coord.b, coord.h, 0), sequence, first_key, padding_end, D);
    };
    store(p.dk), store(p.dv);
    if constexpr (S::kOnePass) store(p.dq);
  }
  if constexpr (S::kOnePass)
    store_zeros<kThreads>(head(p.dq), min(tile_end * kBlockM, sequence.rows), sequence.rows, D);
  if (first_key >= length) {
    store_zeros<kThreads>(head(p.dk), first_key, row_end, D);
    store_zeros<kThreads>(head(p.dv), first_key, row_end, D);
    return;
  }

  const SharedMemory<S, input_t> shared;
  const float keep = static_cast<float>(problem.keep) / kKeepLevels;
  const QueryTileLoader<S, input_t> loader{
      p, head(p.q), head(p.o), head(p.dout), p.lse.offset(coord.b, coord.h, sequence.start), length, D, keep};
  copy_tile_async<S::kBlockN, kD, kThreads>(shared.k, head(p.k), first_key, length, D);
  copy_tile_async<S::kBlockN, kD, kThreads>(shared.v, head(p.v), first_key, length, D);
  const int tile_begin = causal ? first_key / kBlockM : 0;
  loader.load_async(shared, tile_begin, threadIdx.x);

  const DropoutMask<true> mask(problem, coord.head);
  const float scale_log2 = problem.scale * kLog2E;
  float dk[kRowTiles][kD / 8][4] = {}, dv[kRowTiles][kD / 8][4] = {};
  for (int m = tile_begin; m < tile_end; m++) {
    // Addresses hoisted out of the loop would need too many registers.
    const unsigned thread = opaque(threadIdx.x);
    loader.wait(shared, m, thread);
    if (m + 1 < tile_end) loader.load_async(shared, m + 1, thread);
    const int row = S::row(thread), key = first_key + row;  // the warp's first key
    const int stage = m & 1, query = m * kBlockM;
    const int key_end = causal ? min(length, query + kBlockM) : length;  // this tile's queries see keys before this one
    if (key < key_end) {
      Scores<S> s;
      transposed_scores<S>(s, shared.k, row, shared.q(stage), thread);
      float query_values[8];
      load_query_values(query_values, shared.lse(stage), thread);
      for_each_score<S>([&](int i, int j, int k) {
        s[i][j][k] = exp2_approx(s[i][j][k] * scale_log2 - query_values[2 * j + k % 2] * kLog2E);
      });
      if (key + 16 * kRowTiles > length || (causal && key + 16 * kRowTiles > query + 1)) {
        const int g = thread % kWarpSize / 4, t = thread % 4;
        for_each_score<S>([&](int i, int j, int k) {
          const int key_row = key + 16 * i + k / 2 * 8 + g;
          if (key_row >= length || (causal && key_row > query + 8 * j + 2 * t + k % 2)) s[i][j][k] = 0.0f;
        });
      }
      uint32_t bits = 0, a[kRowTiles][2][4];
      if constexpr (kDropout) {
        bits = mask.template bits<kRowTiles == 2>(query, key, {16, 0}, {0, 16}, thread);
        Scores<S> z;
        for_each_score<S>([&](int i, int j, int k) { z[i][j][k] = kept<S>(bits, i, j, k) ? s[i][j][k] : 0.0f; });
        pack_a_fragments<S, input_t>(a, z);
      } else {
        pack_a_fragments<S, input_t>(a, s);
      }
      accumulate<S>(dv, a, shared.dout(stage), thread);

      Scores<S> dp;
      transposed_scores<S>(dp, shared.v, row, shared.dout(stage), thread);
      load_query_values(query_values, shared.delta(stage), thread);
      for_each_score<S>([&](int i, int j, int k) {
        const float z = !kDropout || kept<S>(bits, i, j, k) ? s[i][j][k] : 0.0f;
        s[i][j][k] = z * dp[i][j][k] - s[i][j][k] * query_values[2 * j + k % 2];
      });
      pack_a_fragments<S, input_t>(a, s);
      if constexpr (S::kOnePass) {
#pragma unroll
        for (int i = 0; i < kRowTiles; i++) store_a_fragments<kBlockM>(shared.ds, row + 16 * i, a[i]);
      }
      accumulate<S>(dk, a, shared.q(stage), thread);
    }
    if constexpr (S::kOnePass) {
      __syncthreads();  // all of ds is written, and all warps have read q
      compute_dq_tile<S>(shared, shared.q(stage), p.dq.at(opaque(coord.b), coord.h, sequence.start), query, key_end,
                         sequence.rows, D, problem.scale / keep, thread);
    }
  }

  // Store dk and dv through the warp's rows of the k and v tiles, which no warp reads after this barrier.
  __syncthreads();
  const int row = S::row(threadIdx.x), key = first_key + row;
#pragma unroll
  for (int i = 0; i < kRowTiles; i++) {
    store_accum<kD>(shared.k, row + 16 * i, 0, dk[i], problem.scale / keep, problem.scale / keep);
    store_accum<kD>(shared.v, row + 16 * i, 0, dv[i], 1.0f / keep, 1.0f / keep);
  }
  const int b = opaque(coord.b);
  store_tile<16 * kRowTiles, kD, kD>(p.dk.at(b, coord.h, sequence.start), shared.k, row, 0, key, row_end, D);
  store_tile<16 * kRowTiles, kD, kD>(p.dv.at(b, coord.h, sequence.start), shared.v, row, 0, key, row_end, D);
}

template <typename S, typename input_t>
void run(const BackwardParams<input_t>& p, int64_t heads, Stream stream) {
  with_options(p.problem, [&](auto dropout, auto starts) {
    const unsigned tiles = grid_dim(p.problem.max_seqlen, S::kBlockN);
    launch(dkv_kernel<input_t, S, dropout, starts>, grid_dim(heads * tiles, 1), S::kThreads, S::kSharedBytes, stream, p,
           static_cast<int>(tiles));
  });
}

}  // namespace

template <typename input_t>
void backward_sm80(const BackwardParams<input_t>& p, int64_t heads, Stream stream) {
  with_head_dim(p.problem.D, [&](auto head_dim) {
    using FourWarps = Shape<head_dim, 4, true>;
    using EightWarps = Shape<head_dim, 8, true>;
    if (p.problem.max_seqlen <= FourWarps::kBlockN) return run<FourWarps>(p, heads, stream);
    if (p.problem.max_seqlen <= EightWarps::kBlockN && EightWarps::kSharedBytes <= max_shared_memory()) {
      return run<EightWarps>(p, heads, stream);
    }
    backward_dq_sm80(p, heads, stream);
    run<Shape<head_dim, 4, false>>(p, heads, stream);
  });
}

template void backward_sm80(const BackwardParams<half_t>&, int64_t, Stream);
template void backward_sm80(const BackwardParams<bf16_t>&, int64_t, Stream);

}  // namespace fastlm::attention
