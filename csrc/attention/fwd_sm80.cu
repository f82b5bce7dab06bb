// The forward pass: FlashAttention (Dao et al. 2022, algorithm 1) with the two loops exchanged, and dropout.
//
// A CTA of four warps holds 128 queries (64 if D > 64) and loops over tiles of 64 keys and values. It loads the next
// K/V tile while it processes one. Each warp has 32 queries, so each K/V fragment that it reads from shared memory
// serves two products. With 16 queries the reads, at 128 bytes per clock, would take as long as the products. The Q
// fragments are read again for each K/V tile, which is a fifth of all reads; if they stayed in registers, ptxas would
// spill other values.
//
// If all queries of a sequence fit into one CTA, the kernel is persistent: a CTA processes one head after another, and
// loads the next head's first K/V tile while it processes the last one of the current head. A new CTA would wait for
// its first tile.
//
// Bytes per head, with b bytes per element: reads q, k and v and writes o, 4bSD, and writes lse, 4S. Each CTA
// whose queries see a K/V tile reads it once; all but the first find it in the L2. For 65,536 tokens, 12 heads of 64, S
// = 512 in bf16 the lower bound on an H100 is 135 us, set equally by HBM (3.0 TB/s) and by exp throughput (computed,
// not measured).
#include <algorithm>

#include "attention/mask.cuh"
#include "attention/sm80.h"
#include "attention/tiles_sm80.cuh"
#include "common/launch.cuh"

namespace fastlm::attention {

namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize, kCtasPerSm = 2;
constexpr int kBlockN = 64;

template <int kD>
struct Shape {
  static constexpr int kRowTiles = kD <= 64 ? 2 : 1;  // per warp, of 16 queries
  static constexpr int kBlockM = kWarps * kRowTiles * 16;
  static constexpr int kKvElements = kBlockN * kD;                       // elements
  static constexpr int kSharedBytes = (kBlockM + 4 * kBlockN) * kD * 2;  // q, and two stages of k and v
};

// The online softmax of a warp's rows (Milakov and Gimelshein 2018). A lane keeps the statistics of rows g and g + 8 of
// each tile of 16. Its row_sum covers only the columns that the lane holds.
template <int kRowTiles>
struct OnlineSoftmax {
  float row_max[kRowTiles][2], row_sum[kRowTiles][2];

  __device__ __forceinline__ OnlineSoftmax() {
#pragma unroll
    for (int i = 0; i < kRowTiles; i++) {
      row_max[i][0] = row_max[i][1] = -INFINITY;
      row_sum[i][0] = row_sum[i][1] = 0.0f;
    }
  }

  // Replaces the scores of row tile i by exp(scale * (s - row_max)), the probabilities before the division by row_sum.
  // Returns in `rescale` the factors for results that used the previous row_max.
  template <int kN>
  __device__ __forceinline__ void update(int i, float (&s)[kN][4], float scale_log2, float (&rescale)[2]) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float new_max = row_max[i][h];
#pragma unroll
      for (int j = 0; j < kN; j++) new_max = fmaxf(new_max, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
      new_max = fmaxf(new_max, __shfl_xor_sync(kAllLanes, new_max, 1));
      new_max = fmaxf(new_max, __shfl_xor_sync(kAllLanes, new_max, 2));
      rescale[h] = exp2_approx((row_max[i][h] - new_max) * scale_log2);
      row_max[i][h] = new_max;
      row_sum[i][h] *= rescale[h];
#pragma unroll
      for (int j = 0; j < kN; j++) {
#pragma unroll
        for (int k = 2 * h; k < 2 * h + 2; k++) {
          s[j][k] = exp2_approx(s[j][k] * scale_log2 - new_max * scale_log2);
          row_sum[i][h] += s[j][k];
        }
      }
    }
  }

  // Returns the sum of a whole row.
  __device__ __forceinline__ float full_row_sum(int i, int h) const {
    float sum = row_sum[i][h];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    return sum + __shfl_xor_sync(kAllLanes, sum, 2);
  }
};

// Sets the dropped probabilities to zero in the A fragments of 16 queries.
__device__ __forceinline__ void apply_dropout(uint32_t (&a)[kBlockN / 16][4], uint32_t bits) {
#pragma unroll
  for (int j = 0; j < kBlockN / 16; j++) {
#pragma unroll
    for (int k = 0; k < 4; k++) a[j][k] &= kept_halves(bits, DropoutMask<false>::bit_index(j, k % 2, k / 2, 0));
  }
}

// Processes one K/V tile for a warp's queries: computes scores and probabilities and adds to o. The warp's queries
// begin at row `row` of the Q tile and are query `query` of the sequence; the tile's keys begin at `key`.
template <typename input_t, int kD, bool kDropout>
__device__ __forceinline__ void process_kv_tile(float (&o)[Shape<kD>::kRowTiles][kD / 8][4],
                                                OnlineSoftmax<Shape<kD>::kRowTiles>& softmax, const input_t* q_tile,
                                                const input_t* k_tile, const input_t* v_tile, int row, int query,
                                                int key, int length, bool causal, float scale_log2,
                                                const DropoutMask<false>& mask, unsigned thread) {
  constexpr int kRowTiles = Shape<kD>::kRowTiles;
  float s[kRowTiles][kBlockN / 8][4] = {};
  const FragmentLoader<kD, true, input_t> q_loader(q_tile, thread);
  const FragmentLoader<kD, false, input_t> k_loader(k_tile, thread);
#pragma unroll
  for (int k = 0; k < kD / 16; k++) {
    uint32_t q[kRowTiles][4];
#pragma unroll
    for (int i = 0; i < kRowTiles; i++) q_loader.load(q[i], row + 16 * i, 16 * k);
#pragma unroll
    for (int j = 0; j < kBlockN / 16; j++) {
      uint32_t b[4];
      k_loader.load(b, 16 * j, 16 * k);
#pragma unroll
      for (int i = 0; i < kRowTiles; i++) mma_m16n16k16<input_t>(s[i][2 * j], s[i][2 * j + 1], q[i], b);
    }
  }
  if (key + kBlockN > length || (causal && key + kBlockN > query + 1)) {
#pragma unroll
    for (int i = 0; i < kRowTiles; i++) mask_scores(s[i], -INFINITY, query + 16 * i, key, length, causal);
  }
  uint32_t a[kRowTiles][kBlockN / 16][4];
#pragma unroll
  for (int i = 0; i < kRowTiles; i++) {
    float rescale[2];
    softmax.update(i, s[i], scale_log2, rescale);
#pragma unroll
    for (int j = 0; j < kBlockN / 16; j++) pack_a_fragment<input_t>(a[i][j], s[i][2 * j], s[i][2 * j + 1]);
    if constexpr (kDropout) {
      apply_dropout(a[i], mask.template bits<true>(query + 16 * i, key, {0, 16}, {0, 32}, thread));
    }
#pragma unroll
    for (int j = 0; j < kD / 8; j++) {
      o[i][j][0] *= rescale[0], o[i][j][1] *= rescale[0];
      o[i][j][2] *= rescale[1], o[i][j][3] *= rescale[1];
    }
  }
  const FragmentLoader<kD, true, input_t> v_loader(v_tile, thread);
#pragma unroll
  for (int j = 0; j < kBlockN / 16; j++) {
#pragma unroll
    for (int d = 0; d < kD / 16; d++) {
      uint32_t b[4];
      v_loader.load_transposed(b, 16 * j, 16 * d);
#pragma unroll
      for (int i = 0; i < kRowTiles; i++) mma_m16n16k16<input_t>(o[i][2 * d], o[i][2 * d + 1], a[i][j], b);
    }
  }
}

// A tile of queries of one head, and the number of K/V tiles that these queries see: 0 past the sequence's end, and for
// an index past the last work item.
template <bool kStarts>
struct WorkItem {
  TileCoord coord;
  Sequence sequence;
  int first_query, num_kv_tiles;

  __device__ __forceinline__ WorkItem(const Problem& p, unsigned index, unsigned num_items, int tiles, int queries)
      : coord(min(index, num_items - 1), tiles, p.H), sequence(p, coord.b, std::bool_constant<kStarts>()) {
    first_query = (p.causal ? tiles - 1 - coord.tile : coord.tile) * queries;  // causal: longest tiles first
    const int key_end = p.causal ? min(sequence.length, first_query + queries) : sequence.length;
    num_kv_tiles = index < num_items && first_query < sequence.length ? (key_end + kBlockN - 1) / kBlockN : 0;
  }

  template <typename T>
  __device__ __forceinline__ View<T> view(const View<T>& view) const {
    return view.at(coord.b, coord.h, sequence.start);
  }
};

// Stores the results of queries that see no key: zeros in o, and an lse of +inf, which makes all probabilities zero in
// the backward.
template <int kBlockM, bool kStarts, typename input_t>
__device__ __forceinline__ void store_empty_rows(const ForwardParams<input_t>& p, const WorkItem<kStarts>& item) {
  const int end = min(item.sequence.rows, item.first_query + kBlockM);
  const auto lse_to = item.view(p.lse);
  store_zeros<kThreads>(item.view(p.o), item.first_query, end, p.problem.D);
  for (int i = item.first_query + threadIdx.x; i < end; i += kThreads) store_global(lse_to[i], INFINITY);
}

// Stores the results of the padding around a sequence, as store_empty_rows does, for the rows [item.first_query,
// item.first_query + kBlockM) of the padded batch. Each row is padding or has a query, so it is written once.
template <int kBlockM, bool kStarts, typename input_t>
__device__ __forceinline__ void store_padding(const ForwardParams<input_t>& p, const WorkItem<kStarts>& item) {
  const int first = item.first_query, end = min(p.problem.max_seqlen, first + kBlockM);
  const TileCoord& coord = item.coord;
  const auto lse_to = p.lse.at(coord.b, coord.h, 0);
  store_padding<kThreads>(p.o.at(coord.b, coord.h, 0), item.sequence, first, end, p.problem.D);
  for (int i = first + threadIdx.x; i < end; i += kThreads) {
    if (i < item.sequence.start || i >= item.sequence.start + item.sequence.length) store_global(lse_to[i], INFINITY);
  }
}

// Stores a warp's rows of o and their lse. o goes through the warp's own rows of the Q tile, which no other warp reads.
template <typename input_t, int kD, bool kStarts>
__device__ __forceinline__ void store_output(const ForwardParams<input_t>& p, const WorkItem<kStarts>& item, int row,
                                             input_t* q_tile, float (&o)[Shape<kD>::kRowTiles][kD / 8][4],
                                             const OnlineSoftmax<Shape<kD>::kRowTiles>& softmax) {
  constexpr int kRowTiles = Shape<kD>::kRowTiles;
  const Problem& problem = p.problem;
  const int g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4, query = item.first_query + row;
  const auto lse_to = item.view(p.lse);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kRowTiles; i++) {
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float sum = softmax.full_row_sum(i, h);
      const int query_row = query + 16 * i + 8 * h + g;
      const bool inside = query_row < item.sequence.length;
      factor[h] = inside ? static_cast<float>(kKeepLevels) / problem.keep / sum : 0.0f;
      if (t == 0 && query_row < item.sequence.rows) {
        store_global(lse_to[query_row], inside ? softmax.row_max[i][h] * problem.scale + logf(sum) : INFINITY);
      }
    }
    store_accum<kD>(q_tile, row + 16 * i, 0, o[i], factor[0], factor[1]);
  }
  store_tile<16 * kRowTiles, kD, kD>(item.view(p.o), q_tile, row, 0, query, item.sequence.rows, problem.D);
}

template <typename input_t, int kD, bool kDropout, bool kStarts>
__global__ void __launch_bounds__(kThreads, kCtasPerSm)
    forward_kernel(const ForwardParams<input_t> p, int tiles, unsigned num_items) {
  using S = Shape<kD>;
  constexpr int kRowTiles = S::kRowTiles, kBlockM = S::kBlockM;
  const Problem& problem = p.problem;
  // Returns the first row of a thread's warp.
  const auto row = [](unsigned thread) { return static_cast<int>(thread / kWarpSize * kRowTiles * 16); };
  input_t* const q_tile = dynamic_shared<input_t>();
  input_t* const k_tiles = q_tile + kBlockM * kD;  // [2][kBlockN][kD]
  input_t* const v_tiles = k_tiles + 2 * S::kKvElements;

  const auto load_q_async = [&](const WorkItem<kStarts>& item) {
    if (item.num_kv_tiles == 0) return;
    copy_tile_async<kBlockM, kD, kThreads>(q_tile, item.view(p.q), item.first_query, item.sequence.length, problem.D);
    cp_async_commit();
  };
  const auto load_kv_async = [&](const WorkItem<kStarts>& item, int n, int stage, unsigned thread) {
    if (n >= item.num_kv_tiles) return;
    const int length = item.sequence.length, offset = stage * S::kKvElements;
    copy_tile_async<kBlockN, kD, kThreads>(k_tiles + offset, item.view(p.k), n * kBlockN, length, problem.D, thread);
    copy_tile_async<kBlockN, kD, kThreads>(v_tiles + offset, item.view(p.v), n * kBlockN, length, problem.D, thread);
    cp_async_commit();
  };
  const auto work_item = [&](unsigned index) { return WorkItem<kStarts>(problem, index, num_items, tiles, kBlockM); };

  int stage = 0;  // the stage of the next K/V tile to process
  load_q_async(work_item(blockIdx.x));
  load_kv_async(work_item(blockIdx.x), 0, stage, threadIdx.x);
  for (unsigned index = blockIdx.x; index < num_items; index += gridDim.x) {
    const unsigned next = index + gridDim.x;
    const WorkItem<kStarts> item = work_item(index);
    if constexpr (kStarts) store_padding<kBlockM>(p, item);
    if (item.num_kv_tiles == 0) {
      store_empty_rows<kBlockM>(p, item);
      load_q_async(work_item(next));
      load_kv_async(work_item(next), 0, stage, threadIdx.x);
      continue;
    }
    const DropoutMask<false> mask(problem, item.coord.head);
    float o[kRowTiles][kD / 8][4] = {};
    OnlineSoftmax<kRowTiles> softmax;
    for (int n = 0; n < item.num_kv_tiles; n++, stage ^= 1) {
      const unsigned thread = opaque(threadIdx.x);  // addresses hoisted out of the loop would need too many registers
      cp_async_wait<0>();
      __syncthreads();  // this tile has arrived, and all warps have read the previous one
      if (n + 1 < item.num_kv_tiles) {
        load_kv_async(item, n + 1, stage ^ 1, thread);
      } else {
        load_kv_async(work_item(next), 0, stage ^ 1, thread);
      }
      const int query = item.first_query + row(thread);
      if (problem.causal && n * kBlockN >= query + 16 * kRowTiles)
        continue;  // the warp's queries see none of these keys
      process_kv_tile<input_t, kD, kDropout>(
          o, softmax, q_tile, k_tiles + stage * S::kKvElements, v_tiles + stage * S::kKvElements, row(thread), query,
          n * kBlockN, item.sequence.length, problem.causal, problem.scale * kLog2E, mask, thread);
    }
    store_output<input_t, kD>(p, work_item(opaque(index)), row(opaque(threadIdx.x)), q_tile, o, softmax);
    if (next >= num_items) break;
    __syncthreads();  // all rows of o have been copied out of the Q tile
    load_q_async(work_item(next));
  }
}

}  // namespace

template <typename input_t>
void forward_sm80(const ForwardParams<input_t>& p, int64_t heads, Stream stream) {
  const auto run = [&](auto head_dim, auto dropout, auto starts) {
    using S = Shape<head_dim>;
    const unsigned tiles = grid_dim(p.problem.max_seqlen, S::kBlockM), num_items = grid_dim(heads * tiles, 1);
    // The work items of longer sequences differ in length. One CTA per item lets the hardware balance them.
    const unsigned num_ctas = tiles == 1 ? kCtasPerSm * num_sms() : num_items;
    launch(forward_kernel<input_t, head_dim, dropout, starts>, std::min(num_items, num_ctas), kThreads, S::kSharedBytes,
           stream, p, static_cast<int>(tiles), num_items);
  };
  with_head_dim(p.problem.D, [&](auto head_dim) {
    with_options(p.problem, [&](auto dropout, auto starts) { run(head_dim, dropout, starts); });
  });
}

template void forward_sm80(const ForwardParams<half_t>&, int64_t, Stream);
template void forward_sm80(const ForwardParams<bf16_t>&, int64_t, Stream);

}  // namespace fastlm::attention
