// The backward's pass over blocks of keys: dk = scale ds^T q and dv = (z p)^T do; and dq = scale ds k in the same pass
// where a block has all keys of a sequence. Deterministic, and no atomics.
//
// A warp has 32 keys (16 where D > 64), whose dk and dv it sums in registers over tiles of 32 queries. Its accumulators
// of s^T and dp^T become operands of those sums where they are. ds goes by way of shared memory to the product with k,
// which the warps divide among them otherwise.
//
// dq is a sum over keys. What is deterministic, in bytes a head, b those of an element:
//   one pass, a block having all keys:  q, k, v, o and do read, dq, dk and dv written, and lse, 4S:         8bSD
//   two passes, queries and then keys:  6bSD + 4S and 6bSD + 8S, and two of seven products again:         12bSD
//   one pass, and additions to a float32 dq in the order of the n blocks of keys, then rounded:   8bSD + 8nSD,
// the last of which moves more than the second from n = 2 on, and its blocks wait for one another. So it is one pass up
// to 128 keys by four warps and 256 by eight (half of that where D > 64), where the chip has the shared memory, and
// else two. There tiles of queries are read once for each block of keys that they see, all but the first time from the
// L2. For 65,536 tokens and 12 heads of 64 in bf16 the floor of an H100 is 269 us at S = 128 (HBM) and 322 us at S =
// 512 (five products), both computed, not measured.
//
// Blocks do not go from head to head as the forward's do: the next head's k and v, 32 KB at D = 64, would leave an
// A100's multiprocessor room for one block instead of two.
#include "attention/mask.cuh"
#include "attention/sm80.h"
#include "attention/tiles_sm80.cuh"
#include "common/launch.cuh"

namespace fastlm::attention {

namespace {

constexpr int kQueries = 32;

template <int kD_, int kWarps_, bool kOnePass_>
struct Shape {
  static constexpr int kD = kD_, kWarps = kWarps_, kThreads = kWarps * kWarpSize;
  static constexpr bool kOnePass = kOnePass_;
  static constexpr int kRowTiles = kD <= 64 ? 2 : 1;  // of 16 keys, a warp
  static constexpr int kKeys = kWarps * kRowTiles * 16;
  static constexpr int kOwn = kKeys * kD, kTile = kQueries * kD;  // elements
  // Bytes: k and v; two stages of q, do, lse and delta; for dq one stage of o, and ds.
  static constexpr int kShared =
      (2 * kOwn + 4 * kTile + (kOnePass ? kTile + kKeys * kQueries : 0)) * 2 + 4 * kQueries * int(sizeof(float));

  // The first of the keys of a thread's warp.
  __device__ __forceinline__ static int row(unsigned thread) { return thread / kWarpSize * kRowTiles * 16; }
};

// A block's shared memory.
template <typename S, typename input_t>
struct Shared {
  input_t *k, *v, *o, *ds;

  __device__ __forceinline__ Shared() {
    k = dynamic_shared<input_t>();
    v = k + S::kOwn;
    o = reinterpret_cast<input_t*>(lse(2));
    ds = o + S::kTile;
  }
  __device__ __forceinline__ input_t* q(int stage) const { return v + S::kOwn + stage * S::kTile; }
  __device__ __forceinline__ input_t* dout(int stage) const { return q(2 + stage); }
  __device__ __forceinline__ float* lse(int stage) const {
    return reinterpret_cast<float*>(q(4)) + stage * 2 * kQueries;
  }
  __device__ __forceinline__ float* delta(int stage) const { return lse(stage) + kQueries; }
};

// How tiles of queries come: q, do, lse, and o in one pass or delta in two. Of queries past the length all are zeros,
// which makes zeros of ds and of (z p)^T do as well.
template <typename S, typename input_t>
struct Loader {
  const Backward<input_t>& p;
  View<const input_t> q, o, dout;
  int64_t numbers;  // where the head's lse and delta start: one offset, for pointers take registers
  int length, D;
  float keep;  // of 1

  __device__ __forceinline__ void start(const Shared<S, input_t>& shared, int m, unsigned thread) const {
    const int first = m * kQueries, stage = m & 1, row = first + thread;
    start_tile<kQueries, S::kD, S::kThreads>(shared.q(stage), q, first, length, D, thread);
    start_tile<kQueries, S::kD, S::kThreads>(shared.dout(stage), dout, first, length, D, thread);
    if constexpr (S::kOnePass) start_tile<kQueries, S::kD, S::kThreads>(shared.o, o, first, length, D, thread);
    if (thread < kQueries) {
      const int64_t at = numbers + row * p.lse.row;
      cp_async<4>(shared.lse(stage) + thread, p.lse.data + at, row < length);
      if constexpr (!S::kOnePass) cp_async<4>(shared.delta(stage) + thread, p.delta + at, row < length);
    }
    cp_async_commit();
  }

  // Ends with a barrier: tile m is there, and all have done with the tile before it.
  __device__ __forceinline__ void finish(const Shared<S, input_t>& shared, int m, unsigned thread) const {
    cp_async_wait<0>();
    if constexpr (S::kOnePass) compute_delta(shared, m & 1, thread);
    __syncthreads();
  }

  // Of what this thread has copied itself, so that no barrier is needed.
  __device__ __forceinline__ void compute_delta(const Shared<S, input_t>& shared, int stage, unsigned thread) const {
    using Share = Share<kQueries, S::kD, S::kThreads>;
    const Share share(thread);
    if (!share.any()) return;  // whole warps
#pragma unroll
    for (int i = 0; i < Share::kCount; i++) {
      const int at = share.at() + i * Share::kStep * S::kD;
      const auto& o_chunk = *reinterpret_cast<const Vec<input_t, kChunk>*>(shared.o + at);
      const auto& do_chunk = *reinterpret_cast<const Vec<input_t, kChunk>*>(shared.dout(stage) + at);
      const float sum = row_dot<Share::kChunks>(o_chunk, do_chunk);
      if (share.chunk == 0) shared.delta(stage)[share.row + i * Share::kStep] = sum * keep;
    }
  }
};

// s^T = k q^T, or dp^T = v do^T, of a warp's keys from `row` on in the tile `own` and all queries of a tile.
template <typename S, typename input_t>
__device__ __forceinline__ void transposed_product(float (&s)[S::kRowTiles][4][4], const input_t* own, int row,
                                                   const input_t* queries, unsigned thread) {
  const Blocks<S::kD, true, input_t> own_blocks(own, thread);
  const Blocks<S::kD, false, input_t> query_blocks(queries, thread);
#pragma unroll
  for (int i = 0; i < S::kRowTiles; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) s[i][j][0] = s[i][j][1] = s[i][j][2] = s[i][j][3] = 0.0f;
  }
#pragma unroll 2  // more would take more registers than there are
  for (int k = 0; k < S::kD / 16; k++) {
    uint32_t a[S::kRowTiles][4], b[4];
#pragma unroll
    for (int i = 0; i < S::kRowTiles; i++) own_blocks.load(a[i], row + 16 * i, 16 * k);
#pragma unroll
    for (int j = 0; j < 2; j++) {
      query_blocks.load(b, 16 * j, 16 * k);
#pragma unroll
      for (int i = 0; i < S::kRowTiles; i++) multiply<input_t>(s[i][2 * j], s[i][2 * j + 1], a[i], b);
    }
  }
}

// dv += (z p)^T do, or dk += ds^T q: `a` holds the left factor.
template <typename S, typename input_t>
__device__ __forceinline__ void add_product(float (&sum)[S::kRowTiles][S::kD / 8][4],
                                            const uint32_t (&a)[S::kRowTiles][2][4], const input_t* queries,
                                            unsigned thread) {
  const Blocks<S::kD, true, input_t> blocks(queries, thread);
#pragma unroll
  for (int j = 0; j < 2; j++) {
#pragma unroll
    for (int d = 0; d < S::kD / 16; d++) {
      uint32_t b[4];
      blocks.load_transposed(b, 16 * j, 16 * d);
#pragma unroll
      for (int i = 0; i < S::kRowTiles; i++) multiply<input_t>(sum[i][2 * d], sum[i][2 * d + 1], a[i][j], b);
    }
  }
}

template <typename S>
using Scores = float[S::kRowTiles][4][4];  // of 16 keys and 8 queries each

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
  return (bits >> Mask<true>::place(2 * i + j / 2, k / 2, j % 2, k % 2) & 1) != 0;
}

// The numbers of queries 8j + 2t and 8j + 2t + 1.
__device__ __forceinline__ void load_columns(float (&x)[8], const float* of_queries, unsigned thread) {
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float2 two = *reinterpret_cast<const float2*>(of_queries + 8 * j + 2 * (thread % 4));
    x[2 * j] = two.x, x[2 * j + 1] = two.y;
  }
}

template <typename S, typename input_t>
__device__ __forceinline__ void pack_operands(uint32_t (&a)[S::kRowTiles][2][4], const Scores<S>& s) {
#pragma unroll
  for (int i = 0; i < S::kRowTiles; i++) {
    pack_operand<input_t>(a[i][0], s[i][0], s[i][1]);
    pack_operand<input_t>(a[i][1], s[i][2], s[i][3]);
  }
}

// dq of a tile of queries, all keys before `end` being in the block: a warp's share, by way of the tile of q, which no
// one needs any more, to memory.
template <typename S, typename input_t>
__device__ __forceinline__ void query_gradient(const Shared<S, input_t>& shared, input_t* q_tile,
                                               const View<input_t>& to, int first, int end, int rows, int D,
                                               float factor, unsigned thread) {
  constexpr int kColumns = S::kD * 2 / S::kWarps;  // for each of two warps, with 16 queries each
  const int warp = thread / kWarpSize, row = warp % 2 * 16, column = warp / 2 * kColumns;
  const Blocks<kQueries, false, input_t> ds_blocks(shared.ds, thread);
  const Blocks<S::kD, true, input_t> k_blocks(shared.k, thread);
  float dq[kColumns / 8][4] = {};
#pragma unroll
  for (int k = 0; k < S::kKeys; k += 16) {
    if (k >= end) break;
    uint32_t a[4];
    ds_blocks.load_transposed(a, k, row);
    if constexpr (kColumns == 8) {
      uint32_t b[2];
      k_blocks.load_transposed(b, k, column);
      mma_m16n8k16<input_t>(dq[0], a, b);
    } else {
#pragma unroll
      for (int d = 0; d < kColumns / 16; d++) {
        uint32_t b[4];
        k_blocks.load_transposed(b, k, column + 16 * d);
        multiply<input_t>(dq[2 * d], dq[2 * d + 1], a, b);
      }
    }
  }
  put<S::kD>(q_tile, row, column, dq, factor, factor);
  store_tile<16, kColumns, S::kD>(to, q_tile, row, column, first + row, rows, D);
}

template <typename input_t, typename S, bool kDropout>
__global__ void __launch_bounds__(S::kThreads, 8 / S::kWarps) keys_kernel(const Backward<input_t> p, int tiles) {
  constexpr int kRowTiles = S::kRowTiles, kD = S::kD, kThreads = S::kThreads;
  const Problem& problem = p.problem;
  const Place place(blockIdx.x, tiles, problem.H);
  const Sequence sequence(problem, place.b);
  const bool causal = problem.causal;
  const int length = sequence.length, D = problem.D;
  const int first_key = place.tile * S::kKeys, after = min(sequence.rows, first_key + S::kKeys);
  const auto head = [&](const auto& view) { return view.at(place.b, place.h, sequence.start); };
  const int end = (length + kQueries - 1) / kQueries;
  if constexpr (S::kOnePass) store_zeros<kThreads>(head(p.dq), min(end * kQueries, sequence.rows), sequence.rows, D);
  if (first_key >= length) {
    store_zeros<kThreads>(head(p.dk), first_key, after, D);
    store_zeros<kThreads>(head(p.dv), first_key, after, D);
    return;
  }

  const Shared<S, input_t> shared;
  const float keep = static_cast<float>(problem.keep) / kLevels;
  const Loader<S, input_t> loader{
      p, head(p.q), head(p.o), head(p.dout), p.lse.offset(place.b, place.h, sequence.start), length, D, keep};
  start_tile<S::kKeys, kD, kThreads>(shared.k, head(p.k), first_key, length, D);
  start_tile<S::kKeys, kD, kThreads>(shared.v, head(p.v), first_key, length, D);
  const int begin = causal ? first_key / kQueries : 0;
  loader.start(shared, begin, threadIdx.x);

  const Mask<true> mask(problem, place.head);
  const float c = problem.scale * kLog2E;
  float dk[kRowTiles][kD / 8][4] = {}, dv[kRowTiles][kD / 8][4] = {};
  for (int m = begin; m < end; m++) {
    // Addresses would take more registers than there are if all were computed before the loop.
    const unsigned thread = anew(threadIdx.x);
    loader.finish(shared, m, thread);
    if (m + 1 < end) loader.start(shared, m + 1, thread);
    const int row = S::row(thread), key = first_key + row;  // the warp's first
    const int stage = m & 1, query = m * kQueries;
    const int seen = causal ? min(length, query + kQueries) : length;  // keys before this one
    if (key < seen) {
      Scores<S> s;
      transposed_product<S>(s, shared.k, row, shared.q(stage), thread);
      float numbers[8];
      load_columns(numbers, shared.lse(stage), thread);
      for_each_score<S>(
          [&](int i, int j, int k) { s[i][j][k] = exp2_approx(s[i][j][k] * c - numbers[2 * j + k % 2] * kLog2E); });
      if (key + 16 * kRowTiles > length || (causal && key + 16 * kRowTiles > query + 1)) {
        const int g = thread % kWarpSize / 4, t = thread % 4;
        for_each_score<S>([&](int i, int j, int k) {
          const int at = key + 16 * i + k / 2 * 8 + g;
          if (at >= length || (causal && at > query + 8 * j + 2 * t + k % 2)) s[i][j][k] = 0.0f;
        });
      }
      uint32_t bits = 0, a[kRowTiles][2][4];
      if constexpr (kDropout) {
        bits = mask.template bits<kRowTiles == 2>(query, key, {16, 0}, {0, 16}, thread);
        Scores<S> z;
        for_each_score<S>([&](int i, int j, int k) { z[i][j][k] = kept<S>(bits, i, j, k) ? s[i][j][k] : 0.0f; });
        pack_operands<S, input_t>(a, z);
      } else {
        pack_operands<S, input_t>(a, s);
      }
      add_product<S>(dv, a, shared.dout(stage), thread);

      Scores<S> dp;
      transposed_product<S>(dp, shared.v, row, shared.dout(stage), thread);
      load_columns(numbers, shared.delta(stage), thread);
      for_each_score<S>([&](int i, int j, int k) {
        const float z = !kDropout || kept<S>(bits, i, j, k) ? s[i][j][k] : 0.0f;
        s[i][j][k] = z * dp[i][j][k] - s[i][j][k] * numbers[2 * j + k % 2];
      });
      pack_operands<S, input_t>(a, s);
      if constexpr (S::kOnePass) {
#pragma unroll
        for (int i = 0; i < kRowTiles; i++) put_operand<kQueries>(shared.ds, row + 16 * i, a[i]);
      }
      add_product<S>(dk, a, shared.q(stage), thread);
    }
    if constexpr (S::kOnePass) {
      __syncthreads();  // ds is there, and q has been read
      query_gradient<S>(shared, shared.q(stage), p.dq.at(anew(place.b), place.h, sequence.start), query, seen,
                        sequence.rows, D, problem.scale / keep, thread);
    }
  }

  // Rounded into the warp's rows of the tiles of keys and values, which others read no more.
  __syncthreads();
  const int row = S::row(threadIdx.x), key = first_key + row;
#pragma unroll
  for (int i = 0; i < kRowTiles; i++) {
    put<kD>(shared.k, row + 16 * i, 0, dk[i], problem.scale / keep, problem.scale / keep);
    put<kD>(shared.v, row + 16 * i, 0, dv[i], 1.0f / keep, 1.0f / keep);
  }
  const int b = anew(place.b);
  store_tile<16 * kRowTiles, kD, kD>(p.dk.at(b, place.h, sequence.start), shared.k, row, 0, key, after, D);
  store_tile<16 * kRowTiles, kD, kD>(p.dv.at(b, place.h, sequence.start), shared.v, row, 0, key, after, D);
}

template <typename S, typename input_t>
void run(const Backward<input_t>& p, int64_t heads, Stream stream) {
  with_bool(p.problem.seed != nullptr, [&](auto dropout) {
    const unsigned tiles = blocks(p.problem.longest, S::kKeys);
    launch(keys_kernel<input_t, S, dropout>, blocks(heads * tiles, 1), S::kThreads, S::kShared, stream, p,
           static_cast<int>(tiles));
  });
}

}  // namespace

template <typename input_t>
void backward_sm80(const Backward<input_t>& p, int64_t heads, Stream stream) {
  with_head_dim(p.problem.D, [&](auto head_dim) {
    using Four = Shape<head_dim, 4, true>;
    using Eight = Shape<head_dim, 8, true>;
    if (p.problem.longest <= Four::kKeys) return run<Four>(p, heads, stream);
    if (p.problem.longest <= Eight::kKeys && Eight::kShared <= most_shared_memory()) {
      return run<Eight>(p, heads, stream);
    }
    backward_queries_sm80(p, heads, stream);
    run<Shape<head_dim, 4, false>>(p, heads, stream);
  });
}

template void backward_sm80(const Backward<half_t>&, int64_t, Stream);
template void backward_sm80(const Backward<bf16_t>&, int64_t, Stream);

}  // namespace fastlm::attention
