// The first of the backward's two passes: dq = scale ds k, and delta = rowsum(do * o) for the dkv pass.
//
// A CTA of four warps holds 128 queries (64 if D > 64), with q and do in registers, and loops over tiles of 32 keys and
// values. It computes three products. The dkv pass computes two of them again, because a float32 dq in memory would
// cost more (see bwd_dkv_sm80.cu).
//
// Bytes per head: reads q, k, v, o and do and writes dq, 6bSD, and writes delta, 4S. Each CTA whose queries see a
// K/V tile reads it once; all but the first find it in the L2. lse comes from the L2 too.
#include "attention/mask.cuh"
#include "attention/sm80.h"
#include "attention/tiles_sm80.cuh"
#include "common/launch.cuh"

namespace fastlm::attention {

namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr int kBlockN = 32;

template <int kD>
struct Shape {
  static constexpr int kRowTiles = kD <= 64 ? 2 : 1;  // per warp, of 16 queries
  static constexpr int kBlockM = kWarps * kRowTiles * 16;
  static constexpr int kQElements = kBlockM * kD, kKvElements = kBlockN * kD;
  static constexpr int kSharedBytes = (2 * kQElements + 4 * kKvElements) * 2 + kBlockM * int(sizeof(float));  // bytes
};

// Computes delta * keep / 256 for each query. Reads o from global memory and do from its tile. No barrier is needed: a
// thread reads only the vectors of do that it copied itself, and the lanes of one row are in one warp.
template <int kD, typename input_t>
__device__ __forceinline__ void compute_delta(float* delta, const input_t* do_tile, const View<const input_t>& o,
                                              float* delta_to, int64_t delta_row_stride, int first_query, int length,
                                              int D, float factor) {
  using CopyPartition = CopyPartition<Shape<kD>::kBlockM, kD, kThreads>;
  const CopyPartition partition(threadIdx.x);
  Vec<input_t, kVecSize> o_vecs[CopyPartition::kRowsPerThread];
#pragma unroll
  for (int i = 0; i < CopyPartition::kRowsPerThread; i++) {
    const int row = first_query + partition.row + i * CopyPartition::kRowStep;
    const bool inside = row < length && partition.vec * kVecSize < D;
    o_vecs[i] = load_vec<kVecSize, true>(o[row] + partition.vec * kVecSize, inside ? kVecSize : 0);
  }
  cp_async_wait<0>();
#pragma unroll
  for (int i = 0; i < CopyPartition::kRowsPerThread; i++) {
    const int row = partition.row + i * CopyPartition::kRowStep;
    const auto& vec = *reinterpret_cast<const Vec<input_t, kVecSize>*>(do_tile + partition.offset() +
                                                                       i * CopyPartition::kRowStep * kD);
    const float sum = row_dot<CopyPartition::kVecsPerRow>(o_vecs[i], vec) * factor;
    if (partition.vec == 0) {
      delta[row] = sum;
      if (first_query + row < length) store_global(delta_to + (first_query + row) * delta_row_stride, sum);
    }
  }
}

// Replaces p by ds, for 16 queries and 32 keys. dp is do v^T.
template <bool kDropout, int kRowTile>
__device__ __forceinline__ void compute_ds(float (&p)[4][4], const float (&dp)[4][4], const float (&delta)[2],
                                           uint32_t bits) {
#pragma unroll
  for (int j = 0; j < 4; j++) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const bool kept =
          !kDropout || (bits >> DropoutMask<false>::bit_index(2 * kRowTile + j / 2, k / 2, j % 2, k % 2) & 1) != 0;
      p[j][k] = (kept ? p[j][k] : 0.0f) * dp[j][k] - p[j][k] * delta[k / 2];
    }
  }
}

template <typename input_t, int kD, bool kDropout, bool kStarts>
__global__ void __launch_bounds__(kThreads, 2) dq_kernel(const BackwardParams<input_t> p, int tiles) {
  using S = Shape<kD>;
  constexpr int kRowTiles = S::kRowTiles, kBlockM = S::kBlockM;
  const Problem& problem = p.problem;
  const TileCoord coord(blockIdx.x, tiles, problem.H);
  const Sequence sequence(problem, coord.b, std::bool_constant<kStarts>());
  const bool causal = problem.causal;
  const int length = sequence.length, D = problem.D;
  const int first_query = (causal ? tiles - 1 - coord.tile : coord.tile) * kBlockM;  // causal: longest tiles first
  const int warp = threadIdx.x / kWarpSize, g = threadIdx.x % kWarpSize / 4;
  const int row = warp * kRowTiles * 16, query = first_query + row;  // the warp's first row and query
  const auto head = [&](const auto& view) { return view.at(coord.b, coord.h, sequence.start); };
  const auto dq_to = head(p.dq);
  if constexpr (kStarts) {
    store_padding<kThreads>(p.dq.at(coord.b, coord.h, 0), sequence, first_query,
                            min(problem.max_seqlen, first_query + kBlockM), D);
  }
  if (first_query >= length)
    return store_zeros<kThreads>(dq_to, first_query, min(sequence.rows, first_query + kBlockM), D);

  input_t* const q_tile = dynamic_shared<input_t>();
  input_t* const do_tile = q_tile + S::kQElements;
  input_t* const k_tiles = do_tile + S::kQElements;  // [2][kBlockN][kD]
  input_t* const v_tiles = k_tiles + 2 * S::kKvElements;
  float* const deltas = reinterpret_cast<float*>(v_tiles + 2 * S::kKvElements);
  const auto k_from = head(p.k), v_from = head(p.v);
  const auto load_kv_async = [&](int n) {
    copy_tile_async<kBlockN, kD, kThreads>(k_tiles + (n & 1) * S::kKvElements, k_from, n * kBlockN, length, D);
    copy_tile_async<kBlockN, kD, kThreads>(v_tiles + (n & 1) * S::kKvElements, v_from, n * kBlockN, length, D);
    cp_async_commit();
  };
  copy_tile_async<kBlockM, kD, kThreads>(q_tile, head(p.q), first_query, length, D);
  copy_tile_async<kBlockM, kD, kThreads>(do_tile, head(p.dout), first_query, length, D);
  load_kv_async(0);
  const float keep = static_cast<float>(problem.keep) / kKeepLevels;
  compute_delta<kD>(deltas, do_tile, head(p.o), p.delta + p.lse.offset(coord.b, coord.h, sequence.start),
                    p.lse.row_stride, first_query, length, D, keep);
  __syncthreads();

  uint32_t q[kRowTiles][kD / 16][4], dout[kRowTiles][kD / 16][4];
  float lse[kRowTiles][2], delta[kRowTiles][2];
  const FragmentLoader<kD, true, input_t> q_loader(q_tile), do_loader(do_tile);
  const auto lse_from = head(p.lse);
#pragma unroll
  for (int i = 0; i < kRowTiles; i++) {
#pragma unroll
    for (int k = 0; k < kD / 16; k++) {
      q_loader.load(q[i][k], row + 16 * i, 16 * k);
      do_loader.load(dout[i][k], row + 16 * i, 16 * k);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int tile_row = row + 16 * i + 8 * h + g;
      delta[i][h] = deltas[tile_row];
      lse[i][h] = first_query + tile_row < length
                      ? load_global<Use::kRepeated>(lse_from[first_query + tile_row]) * kLog2E
                      : INFINITY;
    }
  }

  const DropoutMask<false> mask(problem, coord.head);
  const float scale_log2 = problem.scale * kLog2E;
  float dq[kRowTiles][kD / 8][4] = {};
  const int key_end = causal ? min(length, first_query + kBlockM) : length;
  const int num_kv_tiles = (key_end + kBlockN - 1) / kBlockN;
  for (int n = 0; n < num_kv_tiles; n++) {
    cp_async_wait<0>();
    __syncthreads();  // this tile has arrived, and all warps have read the previous one
    if (n + 1 < num_kv_tiles) load_kv_async(n + 1);
    const int key = n * kBlockN;
    if (causal && key >= query + 16 * kRowTiles) continue;  // the warp's queries see none of these keys

    float s[kRowTiles][4][4] = {}, dp[kRowTiles][4][4] = {};
    const FragmentLoader<kD, false, input_t> k_loader(k_tiles + (n & 1) * S::kKvElements),
        v_loader(v_tiles + (n & 1) * S::kKvElements);
#pragma unroll
    for (int k = 0; k < kD / 16; k++) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        uint32_t b[4];
        k_loader.load(b, 16 * j, 16 * k);
#pragma unroll
        for (int i = 0; i < kRowTiles; i++) mma_m16n16k16<input_t>(s[i][2 * j], s[i][2 * j + 1], q[i][k], b);
        v_loader.load(b, 16 * j, 16 * k);
#pragma unroll
        for (int i = 0; i < kRowTiles; i++) mma_m16n16k16<input_t>(dp[i][2 * j], dp[i][2 * j + 1], dout[i][k], b);
      }
    }
    uint32_t bits = 0;
    if constexpr (kDropout) {
      bits = mask.template bits<kRowTiles == 2>(query, key, {0, 16}, {16, 0});
    }
    const bool masked = key + kBlockN > length || (causal && key + kBlockN > query + 1);
#pragma unroll
    for (int i = 0; i < kRowTiles; i++) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
#pragma unroll
        for (int k = 0; k < 4; k++) s[i][j][k] = exp2_approx(s[i][j][k] * scale_log2 - lse[i][k / 2]);
      }
      if (masked) mask_scores(s[i], 0.0f, query + 16 * i, key, length, causal);
      if (i == 0) {
        compute_ds<kDropout, 0>(s[i], dp[i], delta[i], bits);
      } else {
        compute_ds<kDropout, 1>(s[i], dp[i], delta[i], bits);
      }
    }
    const FragmentLoader<kD, true, input_t> k_row_loader(k_tiles + (n & 1) * S::kKvElements);
#pragma unroll
    for (int j = 0; j < 2; j++) {
      uint32_t a[kRowTiles][4], b[4];
#pragma unroll
      for (int i = 0; i < kRowTiles; i++) pack_a_fragment<input_t>(a[i], s[i][2 * j], s[i][2 * j + 1]);
#pragma unroll
      for (int d = 0; d < kD / 16; d++) {
        k_row_loader.load_transposed(b, 16 * j, 16 * d);
#pragma unroll
        for (int i = 0; i < kRowTiles; i++) mma_m16n16k16<input_t>(dq[i][2 * d], dq[i][2 * d + 1], a[i], b);
      }
    }
  }

  // Stores dq through this warp's rows of the Q tile, which no other warp reads.
  __syncwarp();
  const float factor = problem.scale / keep;
#pragma unroll
  for (int i = 0; i < kRowTiles; i++) store_accum<kD>(q_tile, row + 16 * i, 0, dq[i], factor, factor);
  store_tile<16 * kRowTiles, kD, kD>(dq_to, q_tile, row, 0, query, sequence.rows, D);
}

}  // namespace

template <typename input_t>
void backward_dq_sm80(const BackwardParams<input_t>& p, int64_t heads, Stream stream) {
  with_head_dim(p.problem.D, [&](auto head_dim) {
    with_options(p.problem, [&](auto dropout, auto starts) {
      using S = Shape<head_dim>;
      const unsigned tiles = grid_dim(p.problem.max_seqlen, S::kBlockM);
      launch(dq_kernel<input_t, head_dim, dropout, starts>, grid_dim(heads * tiles, 1), kThreads, S::kSharedBytes,
             stream, p, static_cast<int>(tiles));
    });
  });
}

template void backward_dq_sm80(const BackwardParams<half_t>&, int64_t, Stream);
template void backward_dq_sm80(const BackwardParams<bf16_t>&, int64_t, Stream);

}  // namespace fastlm::attention
