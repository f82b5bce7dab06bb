// GELU(LN(x)), forward and backward.
//
// Bytes per row of E elements of b bytes: the forward reads x and writes y, 2bE, and the statistics, 8; the backward
// reads dy and x and writes dx, 3bE, and recomputes the normalised row. The partial sums are those of layer_norm.cu.
// For 32768 x 768 in bf16 the lower bounds on an H100 are 34 us and 50 us, set by HBM (3.0 TB/s; computed, not
// measured).
#include <utility>

#include "common/gelu.cuh"
#include "common/launch.cuh"
#include "common/norm.cuh"
#include "common/partials.cuh"
#include "layer_norm_gelu.h"

namespace fastlm {

namespace {

template <typename input_t>
struct ForwardParams {
  const input_t* x;  // (N, E)
  Parameter gamma, beta;
  input_t* y;   // (N, E)
  float* mean;  // (N,)
  float* rstd;  // (N,)
  int N, E;
  bool tanh;
  float eps;
};

template <typename input_t, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1) forward_kernel(const ForwardParams<input_t> p) {
  __shared__ ReduceScratch<Shape::kWarps, 1> scratch[2];
  const int row = blockIdx.x * Shape::kRows + Shape::row();
  const int64_t offset = static_cast<int64_t>(row) * p.E;
  const int E = row < p.N ? p.E : 0;  // a row past the last one has no columns

  RowValues<Shape> s;
#pragma unroll
  for (int i = 0; i < Shape::kVecs; i++) Shape::load(p.x + offset, i, E).copy_to(s[i]);
  const float2 statistics = row_statistics<Shape>(s, E, p.E, p.eps, scratch);
  store_statistics<Shape>(p.mean, p.rstd, row, p.N, statistics);
#pragma unroll
  for (int i = 0; i < Shape::kVecs; i++) {
#pragma unroll
    for (int j = 0; j < kVecSize; j++) s[i][j] = (s[i][j] - statistics.x) * statistics.y;
    affine<input_t, Shape>(s[i], p.gamma, p.beta, i, E);
    gelu(s[i], p.tanh);
    Shape::store(p.y + offset, i, E, s[i]);
  }
}

// The backward computes, with xhat = (x - mean) * rstd, h = xhat * gamma + beta, dh = dy * GELU'(h) and g = dh * gamma:
//   dx = rstd * (g - mean(g) - xhat * mean(g * xhat)).
template <typename input_t>
struct BackwardParams {
  const input_t* dy;  // (N, E)
  const input_t* x;   // (N, E)
  Parameter gamma, beta;
  const float* mean;  // (N,)
  const float* rstd;  // (N,)
  input_t* dx;        // (N, E)
  float* partials;    // (2, gridDim.x, E): dgamma and dbeta
  int N, E;
  bool tanh;
};

template <typename input_t, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads) backward_kernel(const BackwardParams<input_t> p) {
  __shared__ ReduceScratch<Shape::kWarps, 2> scratch[2];
  __shared__ PartialScratch<Shape> partial_scratch;
  RowValues<Shape> dgamma = {}, dbeta = {};
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
      Shape::load(p.x + offset, i, E).copy_to(xhat[i]);
    }
#pragma unroll
    for (int i = 0; i < Shape::kVecs; i++) {
      float h[kVecSize], slope[kVecSize];
#pragma unroll
      for (int j = 0; j < kVecSize; j++) h[j] = xhat[i][j] = (xhat[i][j] - mean) * rstd;
      affine<input_t, Shape>(h, p.gamma, p.beta, i, E);
      gelu_and_slope(h, slope, p.tanh);
#pragma unroll
      for (int j = 0; j < kVecSize; j++) dh[i][j] *= slope[j];
    }
    const float2 means = row_means<input_t, Shape>(dh, xhat, p.gamma, E, p.E, scratch[odd]);
#pragma unroll
    for (int i = 0; i < Shape::kVecs; i++) {
      float dx[kVecSize];
      Shape::template load_parameter<input_t>(p.gamma, i, E, dx);
#pragma unroll
      for (int j = 0; j < kVecSize; j++) {
        dx[j] = rstd * (dh[i][j] * dx[j] - means.x - xhat[i][j] * means.y);
        dgamma[i][j] += dh[i][j] * xhat[i][j];
        dbeta[i][j] += dh[i][j];
      }
      Shape::store(p.dx + offset, i, E, dx);
    }
  }

  float* const partial = p.partials + static_cast<int64_t>(blockIdx.x) * p.E;
  store_partial<Shape>(dgamma, partial, p.E, partial_scratch);
  store_partial<Shape>(dbeta, partial + static_cast<int64_t>(gridDim.x) * p.E, p.E, partial_scratch);
}

}  // namespace

void layer_norm_gelu_forward(const Array& x, const Array& gamma, const Array& beta, const Array& y, const Array& mean,
                             const Array& rstd, bool tanh, float eps, Stream stream) {
  check(x.rank == 2, "x must have shape (N, E), got ", x.rank, " dimensions");
  const int64_t N = x.shape[0], E = x.shape[1];
  x.expect("x", x.dtype, {N, E});
  y.expect("y", x.dtype, {N, E});
  mean.expect("mean", DType::kFloat32, {N});
  rstd.expect("rstd", DType::kFloat32, {N});
  check(bool(gamma), "gamma must be a tensor, got None");
  with_input_type(x.dtype, [&](auto type) {
    using input_t = typename decltype(type)::type;
    const ForwardParams<input_t> p{.x = x.as<input_t>(),
                                   .gamma = parameter("gamma", gamma, x.dtype, E),
                                   .beta = parameter("beta", beta, x.dtype, E),
                                   .y = y.as<input_t>(),
                                   .mean = mean.as<float>(),
                                   .rstd = rstd.as<float>(),
                                   .N = static_cast<int>(N),
                                   .E = static_cast<int>(E),
                                   .tanh = tanh,
                                   .eps = eps};
    const bool wide = E % kVecSize == 0 && aligned16({x, y, gamma, beta});
    with_row_shape(N, E, wide, [&](auto shape) {
      using Shape = decltype(shape);
      launch(forward_kernel<input_t, Shape>, grid_dim(N, Shape::kRows), Shape::kThreads, 0, stream, p);
    });
  });
}

void layer_norm_gelu_backward(const Array& dy, const Array& x, const Array& mean, const Array& rstd, const Array& gamma,
                              const Array& beta, const Array& dx, const Array& dgamma, const Array& dbeta, bool tanh,
                              const Array& partials, Stream stream) {
  check(x.rank == 2, "x must have shape (N, E), got ", x.rank, " dimensions");
  const int64_t N = x.shape[0], E = x.shape[1];
  for (const auto& [what, array] : {std::pair("dy", dy), {"x", x}, {"dx", dx}}) array.expect(what, x.dtype, {N, E});
  mean.expect("mean", DType::kFloat32, {N});
  rstd.expect("rstd", DType::kFloat32, {N});
  check(bool(gamma), "gamma must be a tensor, got None");
  const int64_t P = check_partials(partials, 2, E);
  with_input_type(x.dtype, [&](auto type) {
    using input_t = typename decltype(type)::type;
    const BackwardParams<input_t> p{.dy = dy.as<input_t>(),
                                    .x = x.as<input_t>(),
                                    .gamma = parameter("gamma", gamma, x.dtype, E),
                                    .beta = parameter("beta", beta, x.dtype, E),
                                    .mean = mean.as<float>(),
                                    .rstd = rstd.as<float>(),
                                    .dx = dx.as<input_t>(),
                                    .partials = partials.as<float>(),
                                    .N = static_cast<int>(N),
                                    .E = static_cast<int>(E),
                                    .tanh = tanh};
    const bool wide = E % kVecSize == 0 && aligned16({dy, x, gamma, beta, dx, partials});
    with_summing_row_shape<input_t>(N, E, wide, [&](auto shape) {
      using Shape = decltype(shape);
      launch(backward_kernel<input_t, Shape>, grid_dim(P, 1), Shape::kThreads, 0, stream, p);
    });
  });
  sum_partials(partials, dgamma, dbeta, Array{}, stream);
}

}  // namespace fastlm
