// LN(GELU(x + bias)), forward and backward.
//
// Bytes per row of E elements of b bytes: the forward reads x and writes y, 2bE, and the statistics, 8; the backward
// reads dy and x and writes dx, 3bE, and recomputes GELU. The partial sums are those of layer_norm.cu. For BERT's head,
// 4915 x 768 in bf16, the lower bounds on an H100 are 5 us and 8 us, set by HBM (3.0 TB/s; computed, not measured).
#include <utility>

#include "common/gelu.cuh"
#include "common/launch.cuh"
#include "common/norm.cuh"
#include "common/partials.cuh"
#include "gelu_layer_norm.h"

namespace fastlm {

namespace {

template <typename input_t>
struct ForwardParams {
  const input_t* x;  // (N, E)
  Parameter bias, gamma, beta;
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

  Vec<input_t, kVecSize> x[Shape::kVecs];
#pragma unroll
  for (int i = 0; i < Shape::kVecs; i++) x[i] = Shape::load(p.x + offset, i, E);
  RowValues<Shape> a;
#pragma unroll
  for (int i = 0; i < Shape::kVecs; i++) {
    x[i].copy_to(a[i]);
    add_bias<input_t, Shape>(a[i], p.bias, i, E);
    gelu(a[i], p.tanh);
  }
  const float2 statistics = row_statistics<Shape>(a, E, p.E, p.eps, scratch);
  store_statistics<Shape>(p.mean, p.rstd, row, p.N, statistics);
#pragma unroll
  for (int i = 0; i < Shape::kVecs; i++) {
#pragma unroll
    for (int j = 0; j < kVecSize; j++) a[i][j] = (a[i][j] - statistics.x) * statistics.y;
    affine<input_t, Shape>(a[i], p.gamma, p.beta, i, E);
    Shape::store(p.y + offset, i, E, a[i]);
  }
}

// The backward computes, with h = x + bias, a = GELU(h), xhat = (a - mean) * rstd and g = dy * gamma:
//   da = rstd * (g - mean(g) - xhat * mean(g * xhat)), dx = da * GELU'(h).
template <typename input_t>
struct BackwardParams {
  const input_t* dy;  // (N, E)
  const input_t* x;   // (N, E)
  Parameter bias, gamma;
  const float* mean;  // (N,)
  const float* rstd;  // (N,)
  input_t* dx;        // (N, E)
  float* partials;    // (3, gridDim.x, E): dgamma, dbeta and dbias
  int N, E;
  bool tanh;
};

template <typename input_t, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads) backward_kernel(const BackwardParams<input_t> p) {
  __shared__ ReduceScratch<Shape::kWarps, 2> scratch[2];
  __shared__ PartialScratch<Shape> partial_scratch;
  RowValues<Shape> dgamma = {}, dbeta = {}, dbias = {};
  // Long rows without 16-byte accesses would need too many registers on sm_100, so GELU's slopes go to shared memory.
  constexpr bool kSlopesInShared = !Shape::kWide && Shape::kWarps > 2;
  __shared__ float slopes[kSlopesInShared ? Shape::kVecs * kVecSize : 1][kSlopesInShared ? Shape::kThreads : 1];
  bool odd = false;
  for (int first = blockIdx.x * Shape::kRows; first < p.N; first += gridDim.x * Shape::kRows, odd = !odd) {
    const int row = first + Shape::row();
    const int64_t offset = static_cast<int64_t>(row) * p.E;
    const int E = row < p.N ? p.E : 0;
    const float mean = row < p.N ? load_global<Use::kRepeated>(p.mean + row) : 0.0f;
    const float rstd = row < p.N ? load_global<Use::kRepeated>(p.rstd + row) : 0.0f;
    Vec<input_t, kVecSize> dy[Shape::kVecs], x[Shape::kVecs];
#pragma unroll
    for (int i = 0; i < Shape::kVecs; i++) {
      dy[i] = Shape::load(p.dy + offset, i, E);
      x[i] = Shape::load(p.x + offset, i, E);
    }
    RowValues<Shape> xhat, slope;
#pragma unroll
    for (int i = 0; i < Shape::kVecs; i++) {
      x[i].copy_to(xhat[i]);
      add_bias<input_t, Shape>(xhat[i], p.bias, i, E);
      gelu_and_slope(xhat[i], slope[i], p.tanh);
#pragma unroll
      for (int j = 0; j < kVecSize; j++) {
        xhat[i][j] = (xhat[i][j] - mean) * rstd;
        if constexpr (kSlopesInShared) slopes[i * kVecSize + j][threadIdx.x] = slope[i][j];
      }
    }
    const float2 means = row_means<input_t, Shape>(dy, xhat, p.gamma, E, p.E, scratch[odd]);
#pragma unroll
    for (int i = 0; i < Shape::kVecs; i++) {
      float dx[kVecSize];
      Shape::template load_parameter<input_t>(p.gamma, i, E, dx);
#pragma unroll
      for (int j = 0; j < kVecSize; j++) {
        if constexpr (kSlopesInShared) slope[i][j] = slopes[i * kVecSize + j][threadIdx.x];
        dx[j] = rstd * (dy[i][j] * dx[j] - means.x - xhat[i][j] * means.y) * slope[i][j];
        dgamma[i][j] += dy[i][j] * xhat[i][j];
        dbeta[i][j] += dy[i][j];
        dbias[i][j] += dx[j];
      }
      Shape::store(p.dx + offset, i, E, dx);
    }
  }

  float* const partial = p.partials + static_cast<int64_t>(blockIdx.x) * p.E;
  const int64_t kind = static_cast<int64_t>(gridDim.x) * p.E;
  store_partial<Shape>(dgamma, partial, p.E, partial_scratch);
  store_partial<Shape>(dbeta, partial + kind, p.E, partial_scratch);
  store_partial<Shape>(dbias, partial + 2 * kind, p.E, partial_scratch);
}

}  // namespace

void gelu_layer_norm_forward(const Array& x, const Array& bias, const Array& gamma, const Array& beta, const Array& y,
                             const Array& mean, const Array& rstd, bool tanh, float eps, Stream stream) {
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
                                   .bias = parameter("bias", bias, x.dtype, E),
                                   .gamma = parameter("gamma", gamma, x.dtype, E),
                                   .beta = parameter("beta", beta, x.dtype, E),
                                   .y = y.as<input_t>(),
                                   .mean = mean.as<float>(),
                                   .rstd = rstd.as<float>(),
                                   .N = static_cast<int>(N),
                                   .E = static_cast<int>(E),
                                   .tanh = tanh,
                                   .eps = eps};
    const bool wide = E % kVecSize == 0 && aligned16({x, y, bias, gamma, beta});
    with_row_shape(N, E, wide, [&](auto shape) {
      using Shape = decltype(shape);
      launch(forward_kernel<input_t, Shape>, grid_dim(N, Shape::kRows), Shape::kThreads, 0, stream, p);
    });
  });
}

void gelu_layer_norm_backward(const Array& dy, const Array& x, const Array& bias, const Array& mean, const Array& rstd,
                              const Array& gamma, const Array& dx, const Array& dgamma, const Array& dbeta,
                              const Array& dbias, bool tanh, const Array& partials, Stream stream) {
  check(x.rank == 2, "x must have shape (N, E), got ", x.rank, " dimensions");
  const int64_t N = x.shape[0], E = x.shape[1];
  for (const auto& [what, array] : {std::pair("dy", dy), {"x", x}, {"dx", dx}}) array.expect(what, x.dtype, {N, E});
  mean.expect("mean", DType::kFloat32, {N});
  rstd.expect("rstd", DType::kFloat32, {N});
  check(bool(gamma), "gamma must be a tensor, got None");
  const int64_t P = check_partials(partials, 3, E);
  with_input_type(x.dtype, [&](auto type) {
    using input_t = typename decltype(type)::type;
    const BackwardParams<input_t> p{.dy = dy.as<input_t>(),
                                    .x = x.as<input_t>(),
                                    .bias = parameter("bias", bias, x.dtype, E),
                                    .gamma = parameter("gamma", gamma, x.dtype, E),
                                    .mean = mean.as<float>(),
                                    .rstd = rstd.as<float>(),
                                    .dx = dx.as<input_t>(),
                                    .partials = partials.as<float>(),
                                    .N = static_cast<int>(N),
                                    .E = static_cast<int>(E),
                                    .tanh = tanh};
    const bool wide = E % kVecSize == 0 && aligned16({dy, x, bias, gamma, dx, partials});
    with_summing_row_shape<input_t>(N, E, wide, [&](auto shape) {
      using Shape = decltype(shape);
      launch(backward_kernel<input_t, Shape>, grid_dim(P, 1), Shape::kThreads, 0, stream, p);
    });
  });
  sum_partials(partials, dgamma, dbeta, dbias, stream);
}

}  // namespace fastlm
