// LN(x) and LN(residual + dropout(x + bias)), forward and backward. LN(x) is the latter without residual, bias and
// dropout. Both directions read a row once and keep it in registers (common/rows.cuh).
//
// Bytes per row of E elements of b bytes:
//
//   pass       bytes     reads                   writes               more or less
//   forward    3bE + 8   x, residual             y, the statistics    -bE without residual, +bE if it stores the sum
//   backward   3bE       dy, the sum (or y, if   ds                   +bE for dx, +bE for dsum
//                        the sum is not stored)
//
// A backward also moves 24PE bytes: P CTAs write the partial sums of three gradients, and a kernel reads them.
//
// Parameters and the statistics of the backward come from caches. For 32768 x 768 in bf16 the lower bound on an H100 is
// 50 us for 3bE and 67 us for 4bE, set by HBM (3.0 TB/s; computed, not measured).
//
// The number of instructions matters too: an H100 issues about 57 per element in 50 us and 76 in 67 us. The machine
// code for sm_90 (E = 768, bf16) has 53 per element in the forward and 51 in the backward, with the code of all
// options; a call runs only some of them.
#include <utility>

#include "common/launch.cuh"
#include "common/norm.cuh"
#include "common/partials.cuh"
#include "common/philox.cuh"
#include "layer_norm.h"

namespace fastlm {

namespace {

template <typename input_t>
struct ForwardParams {
  const input_t* x;         // (N, E)
  const input_t* residual;  // (N, E), or null
  Parameter bias, gamma, beta;
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

// The number of threads per SM for which the forward's registers must suffice. With 640 threads, rows of four float32
// vectors would spill.
template <typename input_t, typename Shape>
constexpr int kForwardThreads = sizeof(input_t) == 4 && Shape::kVecs == 4 ? 512 : 640;

template <typename input_t, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kWide ? kForwardThreads<input_t, Shape> / Shape::kThreads : 1)
    forward_kernel(const ForwardParams<input_t> p) {
  constexpr int kVecs = Shape::kVecs, kWarps = Shape::kWarps;
  __shared__ ReduceScratch<kWarps, 1> scratch[2];
  const int row = blockIdx.x * Shape::kRows + Shape::row();
  const int64_t offset = static_cast<int64_t>(row) * p.E;
  const int E = row < p.N ? p.E : 0;  // a row past the last one has no columns

  Vec<input_t, kVecSize> x[kVecs], residual[kVecs];  // issue all loads before the first use
#pragma unroll
  for (int i = 0; i < kVecs; i++) {
    x[i] = Shape::load(p.x + offset, i, E);
    if (p.residual) residual[i] = Shape::load(p.residual + offset, i, E);
  }
  const uint64_t seed = load_or_zero(p.seed), first_row = load_or_zero(p.first_row);

#pragma unroll
  for (int i = 0; i < kVecs; i++) {
    float h[kVecSize];
    x[i].copy_to(h);
    if (p.bias.data) {
      float bias[kVecSize];
      Shape::template load_parameter<input_t>(p.bias, i, E, bias);
#pragma unroll
      for (int j = 0; j < kVecSize; j++) h[j] += bias[j];
    }
    if (p.seed) {
      const RowMask mask(seed, first_row + row, Shape::column(i));
#pragma unroll
      for (int j = 0; j < kVecSize; j++) h[j] = mask.apply(j, h[j], p.keep, p.scale);
    }
    if (p.residual) {
#pragma unroll
      for (int j = 0; j < kVecSize; j++) h[j] += residual[i][j];
    }
    // Round before normalising, because the backward reads the rounded sum. From here on x holds the sum.
    x[i] = Vec<input_t, kVecSize>::of(h);
    if (p.sum) Shape::store(p.sum + offset, i, E, x[i]);
  }
  const float2 statistics = row_statistics<Shape>(x, E, p.E, p.eps, scratch);
  store_statistics<Shape>(p.mean, p.rstd, row, p.N, statistics);

#pragma unroll
  for (int i = 0; i < kVecs; i++) {
    float y[kVecSize];
    Shape::template load_parameter<input_t>(p.gamma, i, E, y);
#pragma unroll
    for (int j = 0; j < kVecSize; j++) y[j] *= (x[i][j] - statistics.x) * statistics.y;
    if (p.beta.data) {
      float beta[kVecSize];
      Shape::template load_parameter<input_t>(p.beta, i, E, beta);
#pragma unroll
      for (int j = 0; j < kVecSize; j++) y[j] += beta[j];
    }
    Shape::store(p.y + offset, i, E, y);
  }
}

// The backward computes, with xhat = (sum - mean) * rstd = (y - beta) / gamma and g = dy * gamma:
//   ds = rstd * (g - mean(g) - xhat * mean(g * xhat)) + dsum and dx = dropout(ds).
template <typename input_t>
struct BackwardParams {
  const input_t* dy;     // (N, E)
  const input_t* dsum;   // (N, E), or null
  const input_t* saved;  // (N, E): the sum, or y if kFromOutput
  const float* mean;     // (N,), or null if kFromOutput
  const float* rstd;     // (N,)
  Parameter gamma, beta;
  const int64_t* seed;       // (1,), or null without dropout
  const int64_t* first_row;  // (1,), or null for 0
  input_t* ds;               // (N, E)
  input_t* dx;               // (N, E), or null without dropout
  float* partials;           // (3, gridDim.x, E): dgamma, dbeta and dbias, or (2, ...) without dbias
  bool need_dbias;
  int N, E;
  uint32_t keep;  // of 256
  float scale;    // 256 / keep
};

// The values of a row that one lane reads in the backward.
template <typename input_t, typename Shape, bool kFromOutput>
struct BackwardRow {
  Vec<input_t, kVecSize> dy[Shape::kVecs], saved[Shape::kVecs];
  float mean = 0.0f, rstd;

  __device__ __forceinline__ void load(const BackwardParams<input_t>& p, int row) {
    const int64_t offset = static_cast<int64_t>(row) * p.E;
    const int E = row < p.N ? p.E : 0;  // a row past the last one has no columns
#pragma unroll
    for (int i = 0; i < Shape::kVecs; i++) {
      dy[i] = Shape::load(p.dy + offset, i, E);
      saved[i] = Shape::load(p.saved + offset, i, E);
    }
    if constexpr (!kFromOutput) mean = row < p.N ? load_global<Use::kRepeated>(p.mean + row) : 0.0f;
    rstd = row < p.N ? load_global<Use::kRepeated>(p.rstd + row) : 0.0f;
  }
};

// Returns xhat for a value of the sum, or of the output if kFromOutput. gamma is 0 past E.
template <bool kFromOutput>
__device__ __forceinline__ float normalise(float saved, float mean, float rstd, float gamma, float beta) {
  if constexpr (kFromOutput) return gamma == 0.0f ? 0.0f : __fdividef(saved - beta, gamma);
  return (saved - mean) * rstd;
}

template <typename input_t, typename Shape, bool kFromOutput>
__global__ void __launch_bounds__(Shape::kThreads, kFromOutput && !Shape::kWide ? 1 : Shape::kMinSummingCtas)
    backward_kernel(const BackwardParams<input_t> p) {
  constexpr int kVecs = Shape::kVecs, kWarps = Shape::kWarps;
  __shared__ ReduceScratch<kWarps, 2> scratch[2];
  __shared__ PartialScratch<Shape> partial_scratch;
  float dgamma[kVecs][kVecSize] = {}, dbeta[kVecs][kVecSize] = {}, dbias[kVecs][kVecSize] = {};
  const uint64_t seed = load_or_zero(p.seed), first_row = load_or_zero(p.first_row);

  BackwardRow<input_t, Shape, kFromOutput> next;
  // Prefetch the next row if there are registers for two rows.
  constexpr bool kPrefetch = sizeof(input_t) == 2 && Shape::kWide && !kFromOutput;
  if constexpr (kPrefetch) next.load(p, blockIdx.x * Shape::kRows + Shape::row());
  bool odd = false;
  for (int first = blockIdx.x * Shape::kRows; first < p.N; first += gridDim.x * Shape::kRows, odd = !odd) {
    const int row = first + Shape::row();
    if constexpr (!kPrefetch) next.load(p, row);
    const auto [dy, saved, mean, rstd] = next;
    if constexpr (kPrefetch) next.load(p, row + gridDim.x * Shape::kRows);  // in flight while this row is processed
    const int64_t offset = static_cast<int64_t>(row) * p.E;
    const int E = row < p.N ? p.E : 0;

    float means[2] = {0.0f, 0.0f};  // means of g and g * xhat, after the division below
#pragma unroll
    for (int i = 0; i < kVecs; i++) {
      float gamma[kVecSize], beta[kVecSize] = {};
      Shape::template load_parameter<input_t>(p.gamma, i, E, gamma);
      if (kFromOutput && p.beta.data) Shape::template load_parameter<input_t>(p.beta, i, E, beta);
#pragma unroll
      for (int j = 0; j < kVecSize; j++) {
        const float g = dy[i][j] * gamma[j];
        means[0] += g;
        means[1] += g * normalise<kFromOutput>(saved[i][j], mean, rstd, gamma[j], beta[j]);
      }
    }
    group_sum<kWarps>(means, scratch[odd]);
    // The means times rstd, as ds needs them. The divisions contain a branch, which keeps ptxas from interleaving the
    // loops before and after it; interleaved loops would spill.
    const float mean_g = means[0] / p.E * rstd, mean_gx = means[1] / p.E * rstd;

#pragma unroll
    for (int i = 0; i < kVecs; i++) {
      float gamma[kVecSize], beta[kVecSize] = {}, ds[kVecSize];
      Shape::template load_parameter<input_t>(p.gamma, i, E, gamma);
      if (kFromOutput && p.beta.data) Shape::template load_parameter<input_t>(p.beta, i, E, beta);
#pragma unroll
      for (int j = 0; j < kVecSize; j++) {
        const float xhat = normalise<kFromOutput>(saved[i][j], mean, rstd, gamma[j], beta[j]);
        ds[j] = dy[i][j] * gamma[j] * rstd - mean_g - xhat * mean_gx;
        dgamma[i][j] += dy[i][j] * xhat;
        dbeta[i][j] += dy[i][j];
      }
      if (p.dsum) {
        const auto dsum = Shape::load(p.dsum + offset, i, E);
#pragma unroll
        for (int j = 0; j < kVecSize; j++) ds[j] += dsum[j];
      }
      Shape::store(p.ds + offset, i, E, ds);
      if (p.seed) {
        const RowMask mask(seed, first_row + row, Shape::column(i));
#pragma unroll
        for (int j = 0; j < kVecSize; j++) ds[j] = mask.apply(j, ds[j], p.keep, p.scale);
        Shape::store(p.dx + offset, i, E, ds);
      }
#pragma unroll
      for (int j = 0; j < kVecSize; j++) dbias[i][j] += ds[j];
    }
  }

  float* const partial = p.partials + static_cast<int64_t>(blockIdx.x) * p.E;
  const int64_t kind = static_cast<int64_t>(gridDim.x) * p.E;
  store_partial<Shape>(dgamma, partial, p.E, partial_scratch);
  store_partial<Shape>(dbeta, partial + kind, p.E, partial_scratch);
  if (p.need_dbias) store_partial<Shape>(dbias, partial + 2 * kind, p.E, partial_scratch);
}

template <bool kFromOutput>
void launch_backward(const Array& dy, const Array& dsum, const Array& saved, const Array& mean, const Array& rstd,
                     const Array& gamma, const Array& beta, const Array& seed, const Array& first_row, const Array& ds,
                     const Array& dx, const Array& dgamma, const Array& dbeta, const Array& dbias, int keep,
                     const Array& partials, Stream stream) {
  const char* const what = kFromOutput ? "y" : "sum";
  check(saved.rank == 2, what, " must have shape (N, E), got ", saved.rank, " dimensions");
  const int64_t N = saved.shape[0], E = saved.shape[1];
  for (const auto& [name, array] : {std::pair("dy", dy), {what, saved}, {"ds", ds}}) {
    array.expect(name, saved.dtype, {N, E});
  }
  if (dsum) dsum.expect("dsum", saved.dtype, {N, E});
  if (!kFromOutput) mean.expect("mean", DType::kFloat32, {N});
  rstd.expect("rstd", DType::kFloat32, {N});
  check_dropout(seed, "first_row", first_row, keep);
  if (seed) dx.expect("dx", saved.dtype, {N, E});
  check(bool(gamma), "gamma must be a tensor, got None");
  const bool need_dbias = bool(dbias);
  const int64_t P = check_partials(partials, need_dbias ? 3 : 2, E);
  with_input_type(saved.dtype, [&](auto type) {
    using input_t = typename decltype(type)::type;
    const BackwardParams<input_t> p{.dy = dy.as<input_t>(),
                                    .dsum = dsum.as<input_t>(),
                                    .saved = saved.as<input_t>(),
                                    .mean = mean.as<float>(),
                                    .rstd = rstd.as<float>(),
                                    .gamma = parameter("gamma", gamma, saved.dtype, E),
                                    .beta = parameter("beta", beta, saved.dtype, E),
                                    .seed = seed.as<int64_t>(),
                                    .first_row = first_row.as<int64_t>(),
                                    .ds = ds.as<input_t>(),
                                    .dx = dx.as<input_t>(),
                                    .partials = partials.as<float>(),
                                    .need_dbias = need_dbias,
                                    .N = static_cast<int>(N),
                                    .E = static_cast<int>(E),
                                    .keep = static_cast<uint32_t>(keep),
                                    .scale = static_cast<float>(kKeepLevels) / keep};
    const bool wide = E % kVecSize == 0 && aligned16({dy, dsum, saved, gamma, beta, ds, dx, partials});
    with_summing_row_shape<input_t>(N, E, wide, [&](auto shape) {
      using Shape = decltype(shape);
      launch(backward_kernel<input_t, Shape, kFromOutput>, grid_dim(P, 1), Shape::kThreads, 0, stream, p);
    });
  });
  sum_partials(partials, dgamma, dbeta, dbias, stream);
}

}  // namespace

void add_layer_norm_forward(const Array& x, const Array& residual, const Array& bias, const Array& gamma,
                            const Array& beta, const Array& seed, const Array& first_row, const Array& y,
                            const Array& sum, const Array& mean, const Array& rstd, int keep, float eps,
                            Stream stream) {
  check(x.rank == 2, "x must have shape (N, E), got ", x.rank, " dimensions");
  const int64_t N = x.shape[0], E = x.shape[1];
  x.expect("x", x.dtype, {N, E});
  y.expect("y", x.dtype, {N, E});
  if (residual) residual.expect("residual", x.dtype, {N, E});
  if (sum) sum.expect("sum", x.dtype, {N, E});
  mean.expect("mean", DType::kFloat32, {N});
  rstd.expect("rstd", DType::kFloat32, {N});
  check_dropout(seed, "first_row", first_row, keep);
  const Parameter parameters[] = {parameter("bias", bias, x.dtype, E), parameter("gamma", gamma, x.dtype, E),
                                  parameter("beta", beta, x.dtype, E)};
  check(bool(gamma), "gamma must be a tensor, got None");
  with_input_type(x.dtype, [&](auto type) {
    using input_t = typename decltype(type)::type;
    const ForwardParams<input_t> p{.x = x.as<input_t>(),
                                   .residual = residual.as<input_t>(),
                                   .bias = parameters[0],
                                   .gamma = parameters[1],
                                   .beta = parameters[2],
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
    const bool wide = E % kVecSize == 0 && aligned16({x, residual, y, sum, bias, gamma, beta});
    with_row_shape(N, E, wide, [&](auto shape) {
      using Shape = decltype(shape);
      launch(forward_kernel<input_t, Shape>, grid_dim(N, Shape::kRows), Shape::kThreads, 0, stream, p);
    });
  });
}

void add_layer_norm_backward(const Array& dy, const Array& dsum, const Array& sum, const Array& mean, const Array& rstd,
                             const Array& gamma, const Array& seed, const Array& first_row, const Array& ds,
                             const Array& dx, const Array& dgamma, const Array& dbeta, const Array& dbias, int keep,
                             const Array& partials, Stream stream) {
  launch_backward<false>(dy, dsum, sum, mean, rstd, gamma, {}, seed, first_row, ds, dx, dgamma, dbeta, dbias, keep,
                         partials, stream);
}

void add_layer_norm_backward_from_output(const Array& dy, const Array& y, const Array& rstd, const Array& gamma,
                                         const Array& beta, const Array& seed, const Array& first_row, const Array& ds,
                                         const Array& dx, const Array& dgamma, const Array& dbeta, const Array& dbias,
                                         int keep, const Array& partials, Stream stream) {
  launch_backward<true>(dy, {}, y, {}, rstd, gamma, beta, seed, first_row, ds, dx, dgamma, dbeta, dbias, keep, partials,
                        stream);
}

void layer_norm_forward(const Array& x, const Array& gamma, const Array& beta, const Array& y, const Array& mean,
                        const Array& rstd, float eps, Stream stream) {
  add_layer_norm_forward(x, {}, {}, gamma, beta, {}, {}, y, {}, mean, rstd, kKeepLevels, eps, stream);
}

void layer_norm_backward(const Array& dy, const Array& x, const Array& mean, const Array& rstd, const Array& gamma,
                         const Array& dx, const Array& dgamma, const Array& dbeta, const Array& partials,
                         Stream stream) {
  add_layer_norm_backward(dy, {}, x, mean, rstd, gamma, {}, {}, dx, {}, dgamma, dbeta, {}, kKeepLevels, partials,
                          stream);
}

}  // namespace fastlm
