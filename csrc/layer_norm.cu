// Layer norm of x, or of residual + dropout(x + bias), forward and backward. The former is the latter without a
// residual, a bias or dropout, and moves bE less in the forward.
//
// Bytes a row of E elements of b bytes: the forward reads x and residual and writes y, 3bE, or 4bE with the sum; the
// backward reads dy and the sum, or y where no sum was kept, and writes ds, 3bE, or 4bE with dx, and bE more where dsum
// is given. The forward writes the statistics, 8; parameters and the statistics of the backward come from caches. A
// backward of P programs writes their sums and reads them again, 24PE in all. For 32768 x 768 in bf16, at the 3.0 TB/s
// that a copy reaches on an H100, 50 or 67 us each: the floor. Both make one pass with the row in registers
// (common/rows.cuh).
//
// Instructions matter beside the bytes: an H100 issues about 57 an element in 50 us and 76 in 67. Counted in the
// machine code for sm_90, E = 768, bf16, all options together, of which a call takes a part: forward 53, backward 51.
#include <utility>

#include "common/launch.cuh"
#include "common/norm.cuh"
#include "common/partials.cuh"
#include "common/philox.cuh"
#include "layer_norm.h"

namespace fastlm {

namespace {

template <typename input_t>
struct Forward {
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

// Threads on an SM for whose registers the forward is compiled; rows of four chunks of float32 would spill at 640.
template <typename input_t, typename Shape>
constexpr int kForwardThreads = sizeof(input_t) == 4 && Shape::kChunks == 4 ? 512 : 640;

template <typename input_t, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kWide ? kForwardThreads<input_t, Shape> / Shape::kThreads : 1)
    forward_kernel(const Forward<input_t> p) {
  constexpr int kChunks = Shape::kChunks, kWarps = Shape::kWarps;
  __shared__ Scratch<kWarps, 1> scratch[2];
  const int row = blockIdx.x * Shape::kRows + Shape::row();
  const int64_t at = static_cast<int64_t>(row) * p.E;
  const int E = row < p.N ? p.E : 0;  // nothing of a row beyond the last

  Vec<input_t, kLane> x[kChunks], residual[kChunks];  // all loads first: none waits for another's arrival
#pragma unroll
  for (int i = 0; i < kChunks; i++) {
    x[i] = Shape::load(p.x + at, i, E);
    if (p.residual) residual[i] = Shape::load(p.residual + at, i, E);
  }
  const uint64_t seed = load_or_zero(p.seed), first_row = load_or_zero(p.first_row);

#pragma unroll
  for (int i = 0; i < kChunks; i++) {
    float h[kLane];
    x[i].copy_to(h);
    if (p.bias.data) {
      float bias[kLane];
      Shape::template load_parameter<input_t>(p.bias, i, E, bias);
#pragma unroll
      for (int j = 0; j < kLane; j++) h[j] += bias[j];
    }
    if (p.seed) {
      const RowMask mask(seed, first_row + row, Shape::column(i));
#pragma unroll
      for (int j = 0; j < kLane; j++) h[j] = mask.apply(j, h[j], p.keep, p.scale);
    }
    if (p.residual) {
#pragma unroll
      for (int j = 0; j < kLane; j++) h[j] += residual[i][j];
    }
    // Rounded before it is normalised: the backward sees this sum, not a finer one. From here on x is the sum.
    x[i] = Vec<input_t, kLane>::of(h);
    if (p.sum) Shape::store(p.sum + at, i, E, x[i]);
  }
  const float2 statistics = row_statistics<Shape>(x, E, p.E, p.eps, scratch);
  store_statistics<Shape>(p.mean, p.rstd, row, p.N, statistics);

#pragma unroll
  for (int i = 0; i < kChunks; i++) {
    float y[kLane];
    Shape::template load_parameter<input_t>(p.gamma, i, E, y);
#pragma unroll
    for (int j = 0; j < kLane; j++) y[j] *= (x[i][j] - statistics.x) * statistics.y;
    if (p.beta.data) {
      float beta[kLane];
      Shape::template load_parameter<input_t>(p.beta, i, E, beta);
#pragma unroll
      for (int j = 0; j < kLane; j++) y[j] += beta[j];
    }
    Shape::store(p.y + at, i, E, y);
  }
}

// With xhat = (sum - mean) * rstd = (y - beta) / gamma and g = dy * gamma:
// ds = rstd * (g - mean(g) - xhat * mean(g * xhat)) + dsum and dx = dropout(ds).
template <typename input_t>
struct Backward {
  const input_t* dy;     // (N, E)
  const input_t* dsum;   // (N, E), or null
  const input_t* saved;  // (N, E): the sum, or y of the kernels that read the output
  const float* mean;     // (N,), or null beside y
  const float* rstd;     // (N,)
  Parameter gamma, beta;
  const int64_t* seed;       // (1,), or null without dropout
  const int64_t* first_row;  // (1,), or null for 0
  input_t* ds;               // (N, E)
  input_t* dx;               // (N, E), or null without dropout
  float* partials;           // (3, gridDim.x, E): of dgamma, dbeta and dbias, or (2, ...) of the first two
  bool need_dbias;
  int N, E;
  uint32_t keep;  // of 256
  float scale;    // 256 / keep
};

// What a lane of the backward reads of a row.
template <typename input_t, typename Shape, bool kFromOutput>
struct BackwardRow {
  Vec<input_t, kLane> dy[Shape::kChunks], saved[Shape::kChunks];
  float mean = 0.0f, rstd;

  __device__ __forceinline__ void load(const Backward<input_t>& p, int row) {
    const int64_t at = static_cast<int64_t>(row) * p.E;
    const int E = row < p.N ? p.E : 0;  // nothing of a row beyond the last
#pragma unroll
    for (int i = 0; i < Shape::kChunks; i++) {
      dy[i] = Shape::load(p.dy + at, i, E);
      saved[i] = Shape::load(p.saved + at, i, E);
    }
    if constexpr (!kFromOutput) mean = row < p.N ? load_global<Use::kRepeated>(p.mean + row) : 0.0f;
    rstd = row < p.N ? load_global<Use::kRepeated>(p.rstd + row) : 0.0f;
  }
};

// xhat of a value of the sum, or of the output; gamma is 0 past E.
template <bool kFromOutput>
__device__ __forceinline__ float normalise(float saved, float mean, float rstd, float gamma, float beta) {
  if constexpr (kFromOutput) return gamma == 0.0f ? 0.0f : __fdividef(saved - beta, gamma);
  return (saved - mean) * rstd;
}

template <typename input_t, typename Shape, bool kFromOutput>
__global__ void __launch_bounds__(Shape::kThreads, kFromOutput && !Shape::kWide ? 1 : Shape::kSummingBlocks)
    backward_kernel(const Backward<input_t> p) {
  constexpr int kChunks = Shape::kChunks, kWarps = Shape::kWarps;
  __shared__ Scratch<kWarps, 2> scratch[2];
  __shared__ PartialScratch<Shape> partial_scratch;
  float dgamma[kChunks][kLane] = {}, dbeta[kChunks][kLane] = {}, dbias[kChunks][kLane] = {};
  const uint64_t seed = load_or_zero(p.seed), first_row = load_or_zero(p.first_row);

  BackwardRow<input_t, Shape, kFromOutput> next;
  // The next row is read ahead where there are registers for two.
  constexpr bool kAhead = sizeof(input_t) == 2 && Shape::kWide && !kFromOutput;
  if constexpr (kAhead) next.load(p, blockIdx.x * Shape::kRows + Shape::row());
  bool odd = false;
  for (int first = blockIdx.x * Shape::kRows; first < p.N; first += gridDim.x * Shape::kRows, odd = !odd) {
    const int row = first + Shape::row();
    if constexpr (!kAhead) next.load(p, row);
    const auto [dy, saved, mean, rstd] = next;
    if constexpr (kAhead) next.load(p, row + gridDim.x * Shape::kRows);  // on its way while this row is worked on
    const int64_t at = static_cast<int64_t>(row) * p.E;
    const int E = row < p.N ? p.E : 0;

    float means[2] = {0.0f, 0.0f};  // of g and g * xhat
#pragma unroll
    for (int i = 0; i < kChunks; i++) {
      float gamma[kLane], beta[kLane] = {};
      Shape::template load_parameter<input_t>(p.gamma, i, E, gamma);
      if (kFromOutput && p.beta.data) Shape::template load_parameter<input_t>(p.beta, i, E, beta);
#pragma unroll
      for (int j = 0; j < kLane; j++) {
        const float g = dy[i][j] * gamma[j];
        means[0] += g;
        means[1] += g * normalise<kFromOutput>(saved[i][j], mean, rstd, gamma[j], beta[j]);
      }
    }
    group_sum<kWarps>(means, scratch[odd]);
    // Times rstd, as ds is. A division has a branch, which keeps ptxas from mixing the loops before and after and
    // spilling.
    const float mean_g = means[0] / p.E * rstd, mean_gx = means[1] / p.E * rstd;

#pragma unroll
    for (int i = 0; i < kChunks; i++) {
      float gamma[kLane], beta[kLane] = {}, ds[kLane];
      Shape::template load_parameter<input_t>(p.gamma, i, E, gamma);
      if (kFromOutput && p.beta.data) Shape::template load_parameter<input_t>(p.beta, i, E, beta);
#pragma unroll
      for (int j = 0; j < kLane; j++) {
        const float xhat = normalise<kFromOutput>(saved[i][j], mean, rstd, gamma[j], beta[j]);
        ds[j] = dy[i][j] * gamma[j] * rstd - mean_g - xhat * mean_gx;
        dgamma[i][j] += dy[i][j] * xhat;
        dbeta[i][j] += dy[i][j];
      }
      if (p.dsum) {
        const auto dsum = Shape::load(p.dsum + at, i, E);
#pragma unroll
        for (int j = 0; j < kLane; j++) ds[j] += dsum[j];
      }
      Shape::store(p.ds + at, i, E, ds);
      if (p.seed) {
        const RowMask mask(seed, first_row + row, Shape::column(i));
#pragma unroll
        for (int j = 0; j < kLane; j++) ds[j] = mask.apply(j, ds[j], p.keep, p.scale);
        Shape::store(p.dx + at, i, E, ds);
      }
#pragma unroll
      for (int j = 0; j < kLane; j++) dbias[i][j] += ds[j];
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
  const int64_t P = programs_of(partials, need_dbias ? 3 : 2, E);
  with_input_type(saved.dtype, [&](auto type) {
    using input_t = typename decltype(type)::type;
    const Backward<input_t> p{.dy = dy.as<input_t>(),
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
                              .scale = static_cast<float>(kLevels) / keep};
    const bool wide = E % kLane == 0 && aligned16({dy, dsum, saved, gamma, beta, ds, dx, partials});
    with_summing_row_shape<input_t>(N, E, wide, [&](auto shape) {
      using Shape = decltype(shape);
      launch(backward_kernel<input_t, Shape, kFromOutput>, blocks(P, 1), Shape::kThreads, 0, stream, p);
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
    const Forward<input_t> p{.x = x.as<input_t>(),
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
                             .scale = static_cast<float>(kLevels) / keep,
                             .eps = eps};
    const bool wide = E % kLane == 0 && aligned16({x, residual, y, sum, bias, gamma, beta});
    with_row_shape(N, E, wide, [&](auto shape) {
      using Shape = decltype(shape);
      launch(forward_kernel<input_t, Shape>, blocks(N, Shape::kRows), Shape::kThreads, 0, stream, p);
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
  add_layer_norm_forward(x, {}, {}, gamma, beta, {}, {}, y, {}, mean, rstd, kLevels, eps, stream);
}

void layer_norm_backward(const Array& dy, const Array& x, const Array& mean, const Array& rstd, const Array& gamma,
                         const Array& dx, const Array& dgamma, const Array& dbeta, const Array& partials,
                         Stream stream) {
  add_layer_norm_backward(dy, {}, x, mean, rstd, gamma, {}, {}, dx, {}, dgamma, dbeta, {}, kLevels, partials, stream);
}

}  // namespace fastlm
