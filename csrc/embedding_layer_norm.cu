// dropout(LN(We[tokens] + Wp[positions] + Ws[segments])), forward and backward, and the gradient of a table.
//
// Bytes of N tokens, E columns of b bytes (ids, statistics, partial sums and the small tables aside): the forward reads
// a row of the word table for each token and writes y, 2bNE, or 3bNE with the sum. The backward reads dy and the sum
// and writes ds, 3bNE. The gradient of a table of V rows reads ds in the order of the ids and writes each row once, bNE
// + 4VE, and 8E more for each run that holds a single id. For BERT-base, N = 32768 and E = 768 in bf16, V = 30522, at
// the 3.0 TB/s that a copy reaches on an H100: forward 34 us (50 with the sum), backward 50 us, word table 48 us.
//
// The gradient of row v is the sum of ds over the places of v in the sorted ids, [starts[v], starts[v + 1]), in one
// order, so that nothing depends on who comes first. A token may stand in a tenth of all places, and each of BERT's two
// segments in half of them, so a first kernel sums every aligned run of places that holds one id alone; to a row are
// left those sums, and fewer places than a run before them and behind.
#include <algorithm>
#include <utility>

#include "common/launch.cuh"
#include "common/norm.cuh"
#include "common/partials.cuh"
#include "common/philox.cuh"
#include "embedding_layer_norm.h"

namespace fastlm {

namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarpSize;  // of a block whose warps are not a row's (RowShape)

// A table of float32 or of the activations' type, or null, and which of its rows each token takes.
struct Table {
  const void* data;  // (rows, E)
  bool is_float;
  const int64_t* ids;  // (N,), or null: token n takes row n % sequence
  int64_t rows;
};

__device__ __forceinline__ int64_t row_of(const Table& table, int token, int sequence) {
  if (table.ids == nullptr) return token % sequence;
  const int64_t id = load_global<Use::kRepeated>(table.ids + token);
  if (id < 0 || id >= table.rows) __trap();
  return id;
}

template <Use kUse, bool kFirst, typename T, typename Shape>
__device__ __forceinline__ void add_row(RowValues<Shape>& s, const T* from, int E) {
  Vec<T, kLane> vec[Shape::kChunks];
#pragma unroll
  for (int i = 0; i < Shape::kChunks; i++) vec[i] = Shape::template load<kUse>(from, i, E);
#pragma unroll
  for (int i = 0; i < Shape::kChunks; i++) {
#pragma unroll
    for (int j = 0; j < kLane; j++) s[i][j] = kFirst ? vec[i][j] : s[i][j] + vec[i][j];
  }
}

// s (+)= the token's row of the table.
template <Use kUse, bool kFirst, typename input_t, typename Shape>
__device__ __forceinline__ void add_row_of(RowValues<Shape>& s, const Table& table, int64_t row, int columns, int E) {
  if (table.is_float) {
    add_row<kUse, kFirst, float, Shape>(s, static_cast<const float*>(table.data) + row * columns, E);
  } else {
    add_row<kUse, kFirst, input_t, Shape>(s, static_cast<const input_t*>(table.data) + row * columns, E);
  }
}

// Dropout of this thread's vector of a row, from `column` on.
__device__ __forceinline__ void drop(float (&values)[kLane], uint64_t seed, uint64_t row, int column, uint32_t keep,
                                     float scale) {
  const RowMask mask(seed, row, column);
#pragma unroll
  for (int j = 0; j < kLane; j++) values[j] = mask.apply(j, values[j], keep, scale);
}

template <typename input_t>
struct Forward {
  Table word, position, segment;
  int sequence;
  Parameter gamma, beta;     // (E,)
  const int64_t* seed;       // (1,), or null without dropout
  const int64_t* first_row;  // (1,), or null for 0
  input_t* y;                // (N, E)
  input_t* sum;              // (N, E), or null
  float* mean;               // (N,)
  float* rstd;               // (N,)
  int N, E;
  uint32_t keep;  // of 256
  float scale;    // 256 / keep
  float eps;
};

template <typename input_t, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads) forward_kernel(const Forward<input_t> p) {
  __shared__ Scratch<Shape::kWarps, 1> scratch[2];
  const int row = blockIdx.x * Shape::kRows + Shape::row();
  const int64_t at = static_cast<int64_t>(row) * p.E;
  const bool there = row < p.N;
  const int E = there ? p.E : 0;  // nothing of a row beyond the last
  const int64_t token = there ? row_of(p.word, row, p.sequence) : 0;
  const int64_t position = there && p.position.data ? row_of(p.position, row, p.sequence) : 0;
  const int64_t segment = there && p.segment.data ? row_of(p.segment, row, p.sequence) : 0;
  const uint64_t seed = load_or_zero(p.seed), first_row = load_or_zero(p.first_row);

  RowValues<Shape> s;
  add_row_of<Use::kOnce, true, input_t, Shape>(s, p.word, token, p.E, E);
  if (p.position.data) add_row_of<Use::kRepeated, false, input_t, Shape>(s, p.position, position, p.E, E);
  if (p.segment.data) add_row_of<Use::kRepeated, false, input_t, Shape>(s, p.segment, segment, p.E, E);

  if (p.gamma.data) {
#pragma unroll
    for (int i = 0; i < Shape::kChunks; i++) {
      // Rounded before it is normalised: the backward sees this sum, not a finer one.
      const auto rounded = Vec<input_t, kLane>::of(s[i]);
      if (p.sum) Shape::store(p.sum + at, i, E, rounded);
      rounded.copy_to(s[i]);
    }
    const float2 statistics = row_statistics<Shape>(s, E, p.E, p.eps, scratch);
    store_statistics<Shape>(p.mean, p.rstd, row, p.N, statistics);
#pragma unroll
    for (int i = 0; i < Shape::kChunks; i++) {
#pragma unroll
      for (int j = 0; j < kLane; j++) s[i][j] = (s[i][j] - statistics.x) * statistics.y;
      affine<input_t, Shape>(s[i], p.gamma, p.beta, i, E);
    }
  }
#pragma unroll
  for (int i = 0; i < Shape::kChunks; i++) {
    if (p.seed) drop(s[i], seed, first_row + row, Shape::column(i), p.keep, p.scale);
    Shape::store(p.y + at, i, E, s[i]);
  }
}

// With dh = dropout(dy), xhat = (sum - mean) * rstd and g = dh * gamma:
// ds = rstd * (g - mean(g) - xhat * mean(g * xhat)).
template <typename input_t>
struct Backward {
  const input_t* dy;   // (N, E)
  const input_t* sum;  // (N, E)
  const float* mean;   // (N,)
  const float* rstd;   // (N,)
  Parameter gamma;
  const int64_t* seed;       // (1,), or null without dropout
  const int64_t* first_row;  // (1,), or null for 0
  input_t* ds;               // (N, E)
  float* partials;           // (2, gridDim.x, E): of dgamma and dbeta
  int N, E;
  uint32_t keep;  // of 256
  float scale;    // 256 / keep
};

template <typename input_t, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads) backward_kernel(const Backward<input_t> p) {
  __shared__ Scratch<Shape::kWarps, 2> scratch[2];
  __shared__ PartialScratch<Shape> partial_scratch;
  RowValues<Shape> dgamma = {}, dbeta = {};
  const uint64_t seed = load_or_zero(p.seed), first_row = load_or_zero(p.first_row);
  bool odd = false;
  for (int first = blockIdx.x * Shape::kRows; first < p.N; first += gridDim.x * Shape::kRows, odd = !odd) {
    const int row = first + Shape::row();
    const int64_t at = static_cast<int64_t>(row) * p.E;
    const int E = row < p.N ? p.E : 0;
    const float mean = row < p.N ? load_global<Use::kRepeated>(p.mean + row) : 0.0f;
    const float rstd = row < p.N ? load_global<Use::kRepeated>(p.rstd + row) : 0.0f;
    RowValues<Shape> dh, xhat;
#pragma unroll
    for (int i = 0; i < Shape::kChunks; i++) {
      Shape::load(p.dy + at, i, E).copy_to(dh[i]);
      Shape::load(p.sum + at, i, E).copy_to(xhat[i]);
    }
#pragma unroll
    for (int i = 0; i < Shape::kChunks; i++) {
      if (p.seed) drop(dh[i], seed, first_row + row, Shape::column(i), p.keep, p.scale);
#pragma unroll
      for (int j = 0; j < kLane; j++) xhat[i][j] = (xhat[i][j] - mean) * rstd;
    }
    const float2 means = row_means<input_t, Shape>(dh, xhat, p.gamma, E, p.E, scratch[odd]);
#pragma unroll
    for (int i = 0; i < Shape::kChunks; i++) {
      float ds[kLane];
      Shape::template load_parameter<input_t>(p.gamma, i, E, ds);
#pragma unroll
      for (int j = 0; j < kLane; j++) {
        ds[j] = rstd * (dh[i][j] * ds[j] - means.x - xhat[i][j] * means.y);
        dgamma[i][j] += dh[i][j] * xhat[i][j];
        dbeta[i][j] += dh[i][j];
      }
      Shape::store(p.ds + at, i, E, ds);
    }
  }

  float* const partial = p.partials + static_cast<int64_t>(blockIdx.x) * p.E;
  store_partial<Shape>(dgamma, partial, p.E, partial_scratch);
  store_partial<Shape>(dbeta, partial + static_cast<int64_t>(gridDim.x) * p.E, p.E, partial_scratch);
}

// ds = dropout(dy), where there is no layer norm: a warp takes 256 columns of a row.
template <typename input_t, bool kWide>
__global__ void __launch_bounds__(kThreads) dropped_kernel(const Backward<input_t> p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  const int column = blockIdx.y * kWarpColumns + threadIdx.x % kWarpSize * kLane;
  const int64_t at = row * p.E + column;
  const int count = row < p.N ? p.E - column : 0;
  float dy[kLane];
  load_vec<kLane, kWide>(p.dy + at, count).copy_to(dy);
  drop(dy, load_or_zero(p.seed), load_or_zero(p.first_row) + row, column, p.keep, p.scale);
  store_vec<kLane, kWide>(p.ds + at, Vec<input_t, kLane>::of(dy), count);
}

constexpr int kUnderWay = 4;           // rows that a warp loads at a time
constexpr int64_t kVocabulary = 1024;  // rows from which on a table has enough for a warp each

template <typename input_t>
struct Gradient {
  const input_t* ds;      // (N, E)
  const int32_t* ids;     // (N,), sorted
  const int64_t* order;   // (N,)
  const int64_t* starts;  // (V + 1,)
  float* runs;            // (N / run, E)
  float* out;             // (V, E)
  int64_t V;
  int E, run;
};

// The sum of rows of `from` (., E) over this warp's 8 columns a lane and its part of `count` items, of which every
// kShare-th is its own from `first` on; item i is row row_of(i).
template <int kShare, bool kWide, typename T, typename Row>
__device__ __forceinline__ void add_rows(float (&total)[kLane], const T* from, int E, int column, int64_t first,
                                         int64_t count, const Row& row_of) {
  for (int64_t i = first; i < count; i += kShare * kUnderWay) {
    Vec<T, kLane> vec[kUnderWay];
#pragma unroll
    for (int u = 0; u < kUnderWay; u++) {
      const int64_t item = i + u * kShare;
      const int64_t row = item < count ? row_of(item) : 0;
      vec[u] = load_vec<kLane, kWide>(from + row * E + column, item < count ? E - column : 0);
    }
#pragma unroll
    for (int u = 0; u < kUnderWay; u++) {
#pragma unroll
      for (int j = 0; j < kLane; j++) total[j] += vec[u][j];
    }
  }
}

// The sum of the warps' totals, of which there are kShare, in the first of each; the block calls with all its threads.
template <int kShare>
__device__ __forceinline__ void share_sum(float (&total)[kLane],
                                          float (&scratch)[kShare > 1 ? kWarps : 1][kWarpColumns]) {
  if constexpr (kShare > 1) {
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int j = 0; j < kLane; j++) scratch[warp][j * kWarpSize + lane] = total[j];
    __syncthreads();
    if (warp % kShare != 0) return;
#pragma unroll
    for (int i = 1; i < kShare; i++) {
#pragma unroll
      for (int j = 0; j < kLane; j++) total[j] += scratch[warp + i][j * kWarpSize + lane];
    }
  }
}

// runs[i] = the sum of ds over places [i * run, (i + 1) * run) of the sorted ids, where these are all one id.
template <typename input_t, bool kWide>
__global__ void __launch_bounds__(kThreads) runs_kernel(const Gradient<input_t> p) {
  __shared__ float scratch[kWarps][kWarpColumns];
  const int64_t start = static_cast<int64_t>(blockIdx.x) * p.run;
  if (load_global<Use::kRepeated>(p.ids + start) != load_global<Use::kRepeated>(p.ids + start + p.run - 1)) return;
  const int warp = threadIdx.x / kWarpSize, column = blockIdx.y * kWarpColumns + threadIdx.x % kWarpSize * kLane;
  float total[kLane] = {};
  add_rows<kWarps, kWide>(total, p.ds, p.E, column, warp, p.run,
                          [&](int64_t i) { return load_global<Use::kRepeated>(p.order + start + i); });
  share_sum<kWarps>(total, scratch);
  if (warp == 0) {
    float* const run = p.runs + static_cast<int64_t>(blockIdx.x) * p.E + column;
    store_vec<kLane, kWide>(run, Vec<float, kLane>::of(total), p.E - column);
  }
}

// out[v] = the sum of ds over the places [start, end) of v: those before its first whole run, the runs, the rest.
// kShare warps share a row.
template <typename input_t, bool kWide, int kShare>
__global__ void __launch_bounds__(kThreads) rows_kernel(const Gradient<input_t> p) {
  __shared__ float scratch[kShare > 1 ? kWarps : 1][kWarpColumns];
  const int warp = threadIdx.x / kWarpSize, share = warp % kShare;
  const int column = blockIdx.y * kWarpColumns + threadIdx.x % kWarpSize * kLane;
  const int64_t v = static_cast<int64_t>(blockIdx.x) * (kWarps / kShare) + warp / kShare;
  float total[kLane] = {};
  if (v < p.V) {
    const int64_t start = load_global<Use::kRepeated>(p.starts + v);
    const int64_t end = load_global<Use::kRepeated>(p.starts + v + 1);
    const int64_t first_run = (start + p.run - 1) / p.run, last_run = end / p.run;
    const bool whole = first_run < last_run;
    const int64_t first = whole ? first_run * p.run : end, last = whole ? last_run * p.run : end;
    const int64_t before = first - start;
    add_rows<kShare, kWide>(total, p.ds, p.E, column, share, before + end - last, [&](int64_t i) {
      return load_global<Use::kRepeated>(p.order + (i < before ? start + i : last + i - before));
    });
    if (whole) {
      add_rows<kShare, kWide>(total, p.runs, p.E, column, share, last_run - first_run,
                              [&](int64_t i) { return first_run + i; });
    }
  }
  share_sum<kShare>(total, scratch);
  if (share == 0 && v < p.V) {
    store_vec<kLane, kWide>(p.out + v * p.E + column, Vec<float, kLane>::of(total), p.E - column);
  }
}

Table table(const char* what, const Array& array, const char* of_ids, const Array& ids, DType activations, int64_t N,
            int64_t E) {
  if (!array) return {};
  check(array.rank == 2, what, " must have shape (rows, E), got ", array.rank, " dimensions");
  array.expect(what, array.dtype == DType::kFloat32 ? DType::kFloat32 : activations, {array.shape[0], E});
  if (ids) ids.expect(of_ids, DType::kInt64, {N});
  return {
      .data = array.data, .is_float = array.dtype == DType::kFloat32, .ids = ids.as<int64_t>(), .rows = array.shape[0]};
}

}  // namespace

void embedding_layer_norm_forward(const Array& tokens, const Array& word, const Array& position,
                                  const Array& position_ids, const Array& segment, const Array& segments,
                                  const Array& gamma, const Array& beta, const Array& seed, const Array& first_row,
                                  const Array& y, const Array& sum, const Array& mean, const Array& rstd,
                                  int64_t sequence, int keep, float eps, Stream stream) {
  check(y.rank == 2, "y must have shape (N, E), got ", y.rank, " dimensions");
  const int64_t N = y.shape[0], E = y.shape[1];
  y.expect("y", y.dtype, {N, E});
  check(bool(word) && bool(tokens), "word and tokens must be tensors, got None");
  check(!segment || bool(segments), "segment needs segments, got None");
  check(!position || position_ids || N == 0 || (sequence > 0 && sequence <= position.shape[0]),
        "sequence must be from 1 to the rows of position, got ", sequence);
  if (gamma) {
    mean.expect("mean", DType::kFloat32, {N});
    rstd.expect("rstd", DType::kFloat32, {N});
    if (sum) sum.expect("sum", y.dtype, {N, E});
  }
  check_dropout(seed, "first_row", first_row, keep);
  with_input_type(y.dtype, [&](auto type) {
    using input_t = typename decltype(type)::type;
    const Forward<input_t> p{.word = table("word", word, "tokens", tokens, y.dtype, N, E),
                             .position = table("position", position, "position_ids", position_ids, y.dtype, N, E),
                             .segment = table("segment", segment, "segments", segments, y.dtype, N, E),
                             .sequence = static_cast<int>(std::min<int64_t>(sequence, kMostRows)),
                             .gamma = parameter("gamma", gamma, y.dtype, E),
                             .beta = parameter("beta", beta, y.dtype, E),
                             .seed = seed.as<int64_t>(),
                             .first_row = first_row.as<int64_t>(),
                             .y = y.as<input_t>(),
                             .sum = sum.as<input_t>(),
                             .mean = mean.as<float>(),
                             .rstd = rstd.as<float>(),
                             .N = static_cast<int>(N),
                             .E = static_cast<int>(E),
                             .keep = static_cast<uint32_t>(keep),
                             .scale = static_cast<float>(kLevels) / keep,
                             .eps = eps};
    const bool wide = E % kLane == 0 && aligned16({word, position, segment, gamma, beta, y, sum});
    with_row_shape(N, E, wide, [&](auto shape) {
      using Shape = decltype(shape);
      launch(forward_kernel<input_t, Shape>, blocks(N, Shape::kRows), Shape::kThreads, 0, stream, p);
    });
  });
}

void embedding_layer_norm_backward(const Array& dy, const Array& sum, const Array& mean, const Array& rstd,
                                   const Array& gamma, const Array& seed, const Array& first_row, const Array& ds,
                                   const Array& dgamma, const Array& dbeta, int keep, const Array& partials,
                                   Stream stream) {
  check(dy.rank == 2, "dy must have shape (N, E), got ", dy.rank, " dimensions");
  const int64_t N = dy.shape[0], E = dy.shape[1];
  for (const auto& [what, array] : {std::pair("dy", dy), {"ds", ds}}) array.expect(what, dy.dtype, {N, E});
  check_dropout(seed, "first_row", first_row, keep);
  int64_t P = 0;
  if (gamma) {
    sum.expect("sum", dy.dtype, {N, E});
    mean.expect("mean", DType::kFloat32, {N});
    rstd.expect("rstd", DType::kFloat32, {N});
    P = programs_of(partials, 2, E);
  } else {
    check_rows(N, E);
    check(bool(seed), "seed must be a tensor where there is no gamma, got None");
  }
  with_input_type(dy.dtype, [&](auto type) {
    using input_t = typename decltype(type)::type;
    const Backward<input_t> p{.dy = dy.as<input_t>(),
                              .sum = sum.as<input_t>(),
                              .mean = mean.as<float>(),
                              .rstd = rstd.as<float>(),
                              .gamma = parameter("gamma", gamma, dy.dtype, E),
                              .seed = seed.as<int64_t>(),
                              .first_row = first_row.as<int64_t>(),
                              .ds = ds.as<input_t>(),
                              .partials = partials.as<float>(),
                              .N = static_cast<int>(N),
                              .E = static_cast<int>(E),
                              .keep = static_cast<uint32_t>(keep),
                              .scale = static_cast<float>(kLevels) / keep};
    const bool wide = E % kLane == 0 && aligned16({dy, sum, gamma, ds, partials});
    if (gamma) {
      with_summing_row_shape<input_t>(N, E, wide, [&](auto shape) {
        using Shape = decltype(shape);
        launch(backward_kernel<input_t, Shape>, blocks(P, 1), Shape::kThreads, 0, stream, p);
      });
    } else {
      with_bool(wide, [&](auto wide) {
        launch(dropped_kernel<input_t, wide.value>, dim3(blocks(N, kWarps), blocks(E, kWarpColumns)), kThreads, 0,
               stream, p);
      });
    }
  });
  if (gamma) sum_partials(partials, dgamma, dbeta, {}, stream);
}

void embedding_gradient(const Array& ds, const Array& ids, const Array& order, const Array& starts, const Array& runs,
                        const Array& out, int64_t run, Stream stream) {
  check(ds.rank == 2 && out.rank == 2, "ds and out must have shapes (N, E) and (V, E), got ", ds.rank, " and ",
        out.rank, " dimensions");
  const int64_t N = ds.shape[0], E = ds.shape[1], V = out.shape[0];
  check(0 < run && run <= kMostRows, "run must be from 1 to 2^30, got ", run);
  check(E <= kMostRows, "the kernels take rows of at most 2^30 columns, got ", E);
  ds.expect("ds", ds.dtype, {N, E});
  ids.expect("ids", DType::kInt32, {N});
  order.expect("order", DType::kInt64, {N});
  starts.expect("starts", DType::kInt64, {V + 1});
  runs.expect("runs", DType::kFloat32, {N / run, E});
  out.expect("out", DType::kFloat32, {V, E});
  with_input_type(ds.dtype, [&](auto type) {
    using input_t = typename decltype(type)::type;
    const Gradient<input_t> p{.ds = ds.as<input_t>(),
                              .ids = ids.as<int32_t>(),
                              .order = order.as<int64_t>(),
                              .starts = starts.as<int64_t>(),
                              .runs = runs.as<float>(),
                              .out = out.as<float>(),
                              .V = V,
                              .E = static_cast<int>(E),
                              .run = static_cast<int>(run)};
    with_bool(E % kLane == 0 && aligned16({ds, runs, out}), [&](auto wide) {
      const unsigned columns = blocks(E, kWarpColumns);
      launch(runs_kernel<input_t, wide.value>, dim3(blocks(N / run, 1), columns), kThreads, 0, stream, p);
      if (V >= kVocabulary) {
        launch(rows_kernel<input_t, wide.value, 1>, dim3(blocks(V, kWarps), columns), kThreads, 0, stream, p);
      } else {
        launch(rows_kernel<input_t, wide.value, kWarps>, dim3(blocks(V, 1), columns), kThreads, 0, stream, p);
      }
    });
  });
}

}  // namespace fastlm
