// dropout(LN(We[tokens] + Wp[positions] + Ws[segments])), forward and backward, and the gradient of a table.
//
// Bytes for N tokens and E columns of b bytes, without ids, statistics, partial sums and the small tables. The last
// column is the lower bound on an H100 for BERT-base (N = 32768, E = 768, V = 30522, bf16), set by HBM (3.0 TB/s;
// computed, not measured).
//
//   kernel                     bytes        reads and writes                               lower bound
//   forward                    2bNE         word row per token; y                          34 us
//   forward, storing the sum   3bNE         the same, and the sum                          50 us
//   backward                   3bNE         dy, sum; ds                                    50 us
//   gradient of a V-row table  bNE + 4VE    ds in the order of the ids; each row once      48 us
//                              + 8E per run that holds a single id
//
// The gradient of row v is the sum of ds over v's range of the sorted ids, [starts[v], starts[v + 1]), in a fixed
// order, so that it is deterministic. One id may be that of a tenth of all tokens, and each of BERT's two segments has
// half of them. Therefore a first kernel sums each aligned run of `run` sorted ids if it holds only one id. The second
// kernel adds, for each row, the sums of its runs, and the fewer than `run` tokens before and after them.
#include <algorithm>
#include <utility>

#include "common/launch.cuh"
#include "common/norm.cuh"
#include "common/partials.cuh"
#include "common/philox.cuh"
#include "embedding_layer_norm.h"

namespace fastlm {

namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarpSize;  // in kernels without a RowShape

// A table in float32 or the activations' dtype, or null, and the row that each token takes from it.
struct Table {
  const void* data;  // (rows, E)
  bool is_float;
  const int64_t* ids;  // (N,), or null: token n takes row n % sequence
  int64_t rows;
};

// Returns the row of the table that a token takes. An id out of range ends the kernel with an error.
__device__ __forceinline__ int64_t row_of(const Table& table, int token, int sequence) {
  if (table.ids == nullptr) return token % sequence;
  const int64_t id = load_global<Use::kRepeated>(table.ids + token);
  if (id < 0 || id >= table.rows) __trap();
  return id;
}

// Adds the row at `from` to s, or sets s to it if kFirst.
template <Use kUse, bool kFirst, typename T, typename Shape>
__device__ __forceinline__ void add_row(RowValues<Shape>& s, const T* from, int E) {
  Vec<T, kVecSize> vec[Shape::kVecs];
#pragma unroll
  for (int i = 0; i < Shape::kVecs; i++) vec[i] = Shape::template load<kUse>(from, i, E);
#pragma unroll
  for (int i = 0; i < Shape::kVecs; i++) {
#pragma unroll
    for (int j = 0; j < kVecSize; j++) s[i][j] = kFirst ? vec[i][j] : s[i][j] + vec[i][j];
  }
}

// Adds row `row` of a table to s, or sets s to it if kFirst.
template <Use kUse, bool kFirst, typename input_t, typename Shape>
__device__ __forceinline__ void add_row_of(RowValues<Shape>& s, const Table& table, int64_t row, int columns, int E) {
  if (table.is_float) {
    add_row<kUse, kFirst, float, Shape>(s, static_cast<const float*>(table.data) + row * columns, E);
  } else {
    add_row<kUse, kFirst, input_t, Shape>(s, static_cast<const input_t*>(table.data) + row * columns, E);
  }
}

// Applies dropout to this thread's vector of a row, which begins at `column`.
__device__ __forceinline__ void apply_dropout(float (&values)[kVecSize], uint64_t seed, uint64_t row, int column,
                                              uint32_t keep, float scale) {
  const RowMask mask(seed, row, column);
#pragma unroll
  for (int j = 0; j < kVecSize; j++) values[j] = mask.apply(j, values[j], keep, scale);
}

template <typename input_t>
struct ForwardParams {
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
__global__ void __launch_bounds__(Shape::kThreads) forward_kernel(const ForwardParams<input_t> p) {
  __shared__ ReduceScratch<Shape::kWarps, 1> scratch[2];
  const int row = blockIdx.x * Shape::kRows + Shape::row();
  const int64_t offset = static_cast<int64_t>(row) * p.E;
  const bool in_range = row < p.N;
  const int E = in_range ? p.E : 0;  // a row past the last one has no columns
  const int64_t token = in_range ? row_of(p.word, row, p.sequence) : 0;
  const int64_t position = in_range && p.position.data ? row_of(p.position, row, p.sequence) : 0;
  const int64_t segment = in_range && p.segment.data ? row_of(p.segment, row, p.sequence) : 0;
  const uint64_t seed = load_or_zero(p.seed), first_row = load_or_zero(p.first_row);

  RowValues<Shape> s;
  add_row_of<Use::kOnce, true, input_t, Shape>(s, p.word, token, p.E, E);
  if (p.position.data) add_row_of<Use::kRepeated, false, input_t, Shape>(s, p.position, position, p.E, E);
  if (p.segment.data) add_row_of<Use::kRepeated, false, input_t, Shape>(s, p.segment, segment, p.E, E);

  if (p.gamma.data) {
#pragma unroll
    for (int i = 0; i < Shape::kVecs; i++) {
      // Round before normalising, because the backward reads the rounded sum.
      const auto rounded = Vec<input_t, kVecSize>::of(s[i]);
      if (p.sum) Shape::store(p.sum + offset, i, E, rounded);
      rounded.copy_to(s[i]);
    }
    const float2 statistics = row_statistics<Shape>(s, E, p.E, p.eps, scratch);
    store_statistics<Shape>(p.mean, p.rstd, row, p.N, statistics);
#pragma unroll
    for (int i = 0; i < Shape::kVecs; i++) {
#pragma unroll
      for (int j = 0; j < kVecSize; j++) s[i][j] = (s[i][j] - statistics.x) * statistics.y;
      affine<input_t, Shape>(s[i], p.gamma, p.beta, i, E);
    }
  }
#pragma unroll
  for (int i = 0; i < Shape::kVecs; i++) {
    if (p.seed) apply_dropout(s[i], seed, first_row + row, Shape::column(i), p.keep, p.scale);
    Shape::store(p.y + offset, i, E, s[i]);
  }
}

// The backward computes, with dh = dropout(dy), xhat = (sum - mean) * rstd and g = dh * gamma:
//   ds = rstd * (g - mean(g) - xhat * mean(g * xhat)).
template <typename input_t>
struct BackwardParams {
  const input_t* dy;   // (N, E)
  const input_t* sum;  // (N, E)
  const float* mean;   // (N,)
  const float* rstd;   // (N,)
  Parameter gamma;
  const int64_t* seed;       // (1,), or null without dropout
  const int64_t* first_row;  // (1,), or null for 0
  input_t* ds;               // (N, E)
  float* partials;           // (2, gridDim.x, E): dgamma and dbeta
  int N, E;
  uint32_t keep;  // of 256
  float scale;    // 256 / keep
};

template <typename input_t, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads) backward_kernel(const BackwardParams<input_t> p) {
  __shared__ ReduceScratch<Shape::kWarps, 2> scratch[2];
  __shared__ PartialScratch<Shape> partial_scratch;
  RowValues<Shape> dgamma = {}, dbeta = {};
  const uint64_t seed = load_or_zero(p.seed), first_row = load_or_zero(p.first_row);
  bool odd = false;
  for (int first = blockIdx.x * Shape::kRows; first < p.N; first += gridDim.x * Shape::kRows, odd = !odd) {
    const int row = first + Shape::row();
    const int64_t offset = static_cast<int64_t>(row) * p.E;
    const int E = row < p.N ? p.E : 0;
    const float mean = row < p.N ? load_global<Use::kRepeated>(p.mean + row) : 0.0f;
    const float rstd = row < p.N ? load_global<Use::kRepeated>(p.rstd + row) : 0.0f;
    RowValues<Shape> dh, xhat;
#pragma unroll
    for (int i = 0; i < Shape::kVecs; i++) {
      Shape::load(p.dy + offset, i, E).copy_to(dh[i]);
      Shape::load(p.sum + offset, i, E).copy_to(xhat[i]);
    }
#pragma unroll
    for (int i = 0; i < Shape::kVecs; i++) {
      if (p.seed) apply_dropout(dh[i], seed, first_row + row, Shape::column(i), p.keep, p.scale);
#pragma unroll
      for (int j = 0; j < kVecSize; j++) xhat[i][j] = (xhat[i][j] - mean) * rstd;
    }
    const float2 means = row_means<input_t, Shape>(dh, xhat, p.gamma, E, p.E, scratch[odd]);
#pragma unroll
    for (int i = 0; i < Shape::kVecs; i++) {
      float ds[kVecSize];
      Shape::template load_parameter<input_t>(p.gamma, i, E, ds);
#pragma unroll
      for (int j = 0; j < kVecSize; j++) {
        ds[j] = rstd * (dh[i][j] * ds[j] - means.x - xhat[i][j] * means.y);
        dgamma[i][j] += dh[i][j] * xhat[i][j];
        dbeta[i][j] += dh[i][j];
      }
      Shape::store(p.ds + offset, i, E, ds);
    }
  }

  float* const partial = p.partials + static_cast<int64_t>(blockIdx.x) * p.E;
  store_partial<Shape>(dgamma, partial, p.E, partial_scratch);
  store_partial<Shape>(dbeta, partial + static_cast<int64_t>(gridDim.x) * p.E, p.E, partial_scratch);
}

// Computes ds = dropout(dy), for calls without a layer norm. A warp processes 256 columns of a row.
template <typename input_t, bool kWide>
__global__ void __launch_bounds__(kThreads) dropout_kernel(const BackwardParams<input_t> p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  const int column = blockIdx.y * kWarpColumns + threadIdx.x % kWarpSize * kVecSize;
  const int64_t offset = row * p.E + column;
  const int count = row < p.N ? p.E - column : 0;
  float dy[kVecSize];
  load_vec<kVecSize, kWide>(p.dy + offset, count).copy_to(dy);
  apply_dropout(dy, load_or_zero(p.seed), load_or_zero(p.first_row) + row, column, p.keep, p.scale);
  store_vec<kVecSize, kWide>(p.ds + offset, Vec<input_t, kVecSize>::of(dy), count);
}

constexpr int kLoadsInFlight = 4;  // rows that a warp loads at a time
// One warp sums each row of a table with at least so many rows. In smaller tables a whole CTA sums a row, because more
// tokens take it.
constexpr int64_t kMinRowsForWarps = 1024;

template <typename input_t>
struct TableGradientParams {
  const input_t* ds;      // (N, E)
  const int32_t* ids;     // (N,), sorted
  const int64_t* order;   // (N,)
  const int64_t* starts;  // (V + 1,)
  float* runs;            // (N / run, E)
  float* out;             // (V, E)
  int64_t V;
  int E, run;
};

// Adds rows of `from` (., E) to acc, for the 8 columns of each lane. kWarpsPerRow warps divide `count` items: this warp
// adds items first, first + kWarpsPerRow, ... Item i is row row_of(i).
template <int kWarpsPerRow, bool kWide, typename T, typename Row>
__device__ __forceinline__ void add_rows(float (&acc)[kVecSize], const T* from, int E, int column, int64_t first,
                                         int64_t count, const Row& row_of) {
  for (int64_t i = first; i < count; i += kWarpsPerRow * kLoadsInFlight) {
    Vec<T, kVecSize> vec[kLoadsInFlight];
#pragma unroll
    for (int u = 0; u < kLoadsInFlight; u++) {
      const int64_t item = i + u * kWarpsPerRow;
      const int64_t row = item < count ? row_of(item) : 0;
      vec[u] = load_vec<kVecSize, kWide>(from + row * E + column, item < count ? E - column : 0);
    }
#pragma unroll
    for (int u = 0; u < kLoadsInFlight; u++) {
#pragma unroll
      for (int j = 0; j < kVecSize; j++) acc[j] += vec[u][j];
    }
  }
}

// Adds up `acc` over each group of kWarpsPerRow warps. The first warp of a group has the sums. All threads of the CTA
// must call.
template <int kWarpsPerRow>
__device__ __forceinline__ void sum_over_warps(float (&acc)[kVecSize],
                                               float (&scratch)[kWarpsPerRow > 1 ? kWarps : 1][kWarpColumns]) {
  if constexpr (kWarpsPerRow > 1) {
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int j = 0; j < kVecSize; j++) scratch[warp][j * kWarpSize + lane] = acc[j];
    __syncthreads();
    if (warp % kWarpsPerRow != 0) return;
#pragma unroll
    for (int i = 1; i < kWarpsPerRow; i++) {
#pragma unroll
      for (int j = 0; j < kVecSize; j++) acc[j] += scratch[warp + i][j * kWarpSize + lane];
    }
  }
}

// Sets runs[i] to the sum of ds over the sorted ids [i * run, (i + 1) * run) if all of these ids are equal.
template <typename input_t, bool kWide>
__global__ void __launch_bounds__(kThreads) runs_kernel(const TableGradientParams<input_t> p) {
  __shared__ float scratch[kWarps][kWarpColumns];
  const int64_t start = static_cast<int64_t>(blockIdx.x) * p.run;
  if (load_global<Use::kRepeated>(p.ids + start) != load_global<Use::kRepeated>(p.ids + start + p.run - 1)) return;
  const int warp = threadIdx.x / kWarpSize, column = blockIdx.y * kWarpColumns + threadIdx.x % kWarpSize * kVecSize;
  float acc[kVecSize] = {};
  add_rows<kWarps, kWide>(acc, p.ds, p.E, column, warp, p.run,
                          [&](int64_t i) { return load_global<Use::kRepeated>(p.order + start + i); });
  sum_over_warps<kWarps>(acc, scratch);
  if (warp == 0) {
    float* const run = p.runs + static_cast<int64_t>(blockIdx.x) * p.E + column;
    store_vec<kVecSize, kWide>(run, Vec<float, kVecSize>::of(acc), p.E - column);
  }
}

// Sets out[v] to the sum of ds over v's range [start, end) of the sorted ids: the tokens before its first whole run,
// the sums of its whole runs, and the tokens after them. kWarpsPerRow warps process a row.
template <typename input_t, bool kWide, int kWarpsPerRow>
__global__ void __launch_bounds__(kThreads) rows_kernel(const TableGradientParams<input_t> p) {
  __shared__ float scratch[kWarpsPerRow > 1 ? kWarps : 1][kWarpColumns];
  const int warp = threadIdx.x / kWarpSize, warp_in_row = warp % kWarpsPerRow;
  const int column = blockIdx.y * kWarpColumns + threadIdx.x % kWarpSize * kVecSize;
  const int64_t v = static_cast<int64_t>(blockIdx.x) * (kWarps / kWarpsPerRow) + warp / kWarpsPerRow;
  float acc[kVecSize] = {};
  if (v < p.V) {
    const int64_t start = load_global<Use::kRepeated>(p.starts + v);
    const int64_t end = load_global<Use::kRepeated>(p.starts + v + 1);
    const int64_t first_run = (start + p.run - 1) / p.run, last_run = end / p.run;
    const bool whole = first_run < last_run;
    const int64_t first = whole ? first_run * p.run : end, last = whole ? last_run * p.run : end;
    const int64_t before = first - start;
    add_rows<kWarpsPerRow, kWide>(acc, p.ds, p.E, column, warp_in_row, before + end - last, [&](int64_t i) {
      return load_global<Use::kRepeated>(p.order + (i < before ? start + i : last + i - before));
    });
    if (whole) {
      add_rows<kWarpsPerRow, kWide>(acc, p.runs, p.E, column, warp_in_row, last_run - first_run,
                                    [&](int64_t i) { return first_run + i; });
    }
  }
  sum_over_warps<kWarpsPerRow>(acc, scratch);
  if (warp_in_row == 0 && v < p.V) {
    store_vec<kVecSize, kWide>(p.out + v * p.E + column, Vec<float, kVecSize>::of(acc), p.E - column);
  }
}

Table table(const char* what, const Array& array, const char* ids_name, const Array& ids, DType activations, int64_t N,
            int64_t E) {
  if (!array) return {};
  check(array.rank == 2, what, " must have shape (rows, E), got ", array.rank, " dimensions");
  array.expect(what, array.dtype == DType::kFloat32 ? DType::kFloat32 : activations, {array.shape[0], E});
  if (ids) ids.expect(ids_name, DType::kInt64, {N});
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
    const ForwardParams<input_t> p{.word = table("word", word, "tokens", tokens, y.dtype, N, E),
                                   .position = table("position", position, "position_ids", position_ids, y.dtype, N, E),
                                   .segment = table("segment", segment, "segments", segments, y.dtype, N, E),
                                   .sequence = static_cast<int>(std::min<int64_t>(sequence, kMaxRows)),
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
                                   .scale = static_cast<float>(kKeepLevels) / keep,
                                   .eps = eps};
    const bool wide = E % kVecSize == 0 && aligned16({word, position, segment, gamma, beta, y, sum});
    with_row_shape(N, E, wide, [&](auto shape) {
      using Shape = decltype(shape);
      launch(forward_kernel<input_t, Shape>, grid_dim(N, Shape::kRows), Shape::kThreads, 0, stream, p);
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
    P = check_partials(partials, 2, E);
  } else {
    check_rows(N, E);
    check(bool(seed), "seed must be a tensor where there is no gamma, got None");
  }
  with_input_type(dy.dtype, [&](auto type) {
    using input_t = typename decltype(type)::type;
    const BackwardParams<input_t> p{.dy = dy.as<input_t>(),
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
                                    .scale = static_cast<float>(kKeepLevels) / keep};
    const bool wide = E % kVecSize == 0 && aligned16({dy, sum, gamma, ds, partials});
    if (gamma) {
      with_summing_row_shape<input_t>(N, E, wide, [&](auto shape) {
        using Shape = decltype(shape);
        launch(backward_kernel<input_t, Shape>, grid_dim(P, 1), Shape::kThreads, 0, stream, p);
      });
    } else {
      with_bool(wide, [&](auto wide) {
        launch(dropout_kernel<input_t, wide.value>, dim3(grid_dim(N, kWarps), grid_dim(E, kWarpColumns)), kThreads, 0,
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
  check(0 < run && run <= kMaxRows, "run must be from 1 to 2^30, got ", run);
  check(E <= kMaxRows, "the kernels take rows of at most 2^30 columns, got ", E);
  ds.expect("ds", ds.dtype, {N, E});
  ids.expect("ids", DType::kInt32, {N});
  order.expect("order", DType::kInt64, {N});
  starts.expect("starts", DType::kInt64, {V + 1});
  runs.expect("runs", DType::kFloat32, {N / run, E});
  out.expect("out", DType::kFloat32, {V, E});
  with_input_type(ds.dtype, [&](auto type) {
    using input_t = typename decltype(type)::type;
    const TableGradientParams<input_t> p{.ds = ds.as<input_t>(),
                                         .ids = ids.as<int32_t>(),
                                         .order = order.as<int64_t>(),
                                         .starts = starts.as<int64_t>(),
                                         .runs = runs.as<float>(),
                                         .out = out.as<float>(),
                                         .V = V,
                                         .E = static_cast<int>(E),
                                         .run = static_cast<int>(run)};
    with_bool(E % kVecSize == 0 && aligned16({ds, runs, out}), [&](auto wide) {
      const unsigned columns = grid_dim(E, kWarpColumns);
      launch(runs_kernel<input_t, wide.value>, dim3(grid_dim(N / run, 1), columns), kThreads, 0, stream, p);
      if (V >= kMinRowsForWarps) {
        launch(rows_kernel<input_t, wide.value, 1>, dim3(grid_dim(V, kWarps), columns), kThreads, 0, stream, p);
      } else {
        launch(rows_kernel<input_t, wide.value, kWarps>, dim3(grid_dim(V, 1), columns), kThreads, 0, stream, p);
      }
    });
  });
}

}  // namespace fastlm
