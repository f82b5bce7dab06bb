// GELU(x + bias), forward and backward.
//
// Bytes for N rows of F elements of b bytes, without the bias: the forward reads x and writes y, 2bNF; the backward
// reads dy and x and writes dx, 3bNF, and recomputes x + bias. For 32768 x 3072 in bf16 the lower bounds on an H100 are
// 134 us and 201 us, set by HBM (3.0 TB/s; computed, not measured).
//
// A warp processes 256 columns of some rows, 16 bytes per lane in half precision. The warps of a CTA process different
// rows of the same columns, so the columns' bias stays in registers. A CTA of the backward loops over rows and stores
// one partial sum of dbias per column.
#include <utility>

#include "bias_gelu.h"
#include "common/gelu.cuh"
#include "common/launch.cuh"
#include "common/partials.cuh"

namespace fastlm {

namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr int kForwardRows = 4, kBackwardRows = 2;  // rows that a warp loads at a time

template <typename input_t>
struct ForwardParams {
  const input_t* x;  // (N, F)
  Parameter bias;
  input_t* y;  // (N, F)
  int N, F;
  bool tanh;
};

// The 8 columns of this thread.
template <bool kWide>
struct Columns {
  int first, count;  // the first column, and the number of columns from it to F; at most 0 if this thread has none

  __device__ __forceinline__ explicit Columns(int F)
      : first(blockIdx.y * kWarpColumns + threadIdx.x % kWarpSize * kVecSize), count(F - first) {}

  template <typename T>
  __device__ __forceinline__ Vec<T, kVecSize> load(const T* x, int64_t row, int rows, int F) const {
    return load_vec<kVecSize, kWide>(x + row * F + first, row < rows ? count : 0);
  }
  template <typename T>
  __device__ __forceinline__ void store(T* x, int64_t row, int rows, int F, const float (&values)[kVecSize]) const {
    store_vec<kVecSize, kWide>(x + row * F + first, Vec<T, kVecSize>::of(values), row < rows ? count : 0);
  }
  template <typename T>
  __device__ __forceinline__ void load_bias(Parameter bias, float (&values)[kVecSize]) const {
    if (bias.data == nullptr) {
#pragma unroll
      for (int j = 0; j < kVecSize; j++) values[j] = 0.0f;
    } else if (bias.is_float) {
      load_vec<kVecSize, kWide, Use::kRepeated>(static_cast<const float*>(bias.data) + first, count).copy_to(values);
    } else {
      load_vec<kVecSize, kWide, Use::kRepeated>(static_cast<const T*>(bias.data) + first, count).copy_to(values);
    }
  }
};

template <typename input_t, bool kWide>
__global__ void __launch_bounds__(kThreads) forward_kernel(const ForwardParams<input_t> p) {
  const Columns<kWide> columns(p.F);
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize) * kForwardRows;
  Vec<input_t, kVecSize> x[kForwardRows];
#pragma unroll
  for (int i = 0; i < kForwardRows; i++) x[i] = columns.load(p.x, row + i, p.N, p.F);
  float bias[kVecSize];
  columns.template load_bias<input_t>(p.bias, bias);
#pragma unroll
  for (int i = 0; i < kForwardRows; i++) {
    float h[kVecSize];
#pragma unroll
    for (int j = 0; j < kVecSize; j++) h[j] = x[i][j] + bias[j];
    gelu(h, p.tanh);
    columns.store(p.y, row + i, p.N, p.F, h);
  }
}

template <typename input_t>
struct BackwardParams {
  const input_t* dy;  // (N, F)
  const input_t* x;   // (N, F)
  Parameter bias;
  input_t* dx;      // (N, F)
  float* partials;  // (1, gridDim.x, F)
  int N, F;
  bool tanh;
};

template <typename input_t, bool kWide>
__global__ void __launch_bounds__(kThreads, kWide && sizeof(input_t) == 2 ? 5 : 4)
    backward_kernel(const BackwardParams<input_t> p) {
  __shared__ float sums[kWarps][kWarpColumns];
  const Columns<kWide> columns(p.F);
  const int warp = threadIdx.x / kWarpSize;
  float bias[kVecSize], dbias[kVecSize] = {};
  columns.template load_bias<input_t>(p.bias, bias);
  constexpr int kRows = kWarps * kBackwardRows;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kRows; first < p.N;
       first += static_cast<int64_t>(gridDim.x) * kRows) {
    const int64_t row = first + warp * kBackwardRows;
    Vec<input_t, kVecSize> dy[kBackwardRows], x[kBackwardRows];
#pragma unroll
    for (int i = 0; i < kBackwardRows; i++) {
      dy[i] = columns.load(p.dy, row + i, p.N, p.F);
      x[i] = columns.load(p.x, row + i, p.N, p.F);
    }
#pragma unroll
    for (int i = 0; i < kBackwardRows; i++) {
      float h[kVecSize], dx[kVecSize];
#pragma unroll
      for (int j = 0; j < kVecSize; j++) h[j] = x[i][j] + bias[j];
      gelu_and_slope(h, dx, p.tanh);
#pragma unroll
      for (int j = 0; j < kVecSize; j++) {
        dx[j] *= dy[i][j];
        dbias[j] += dx[j];
      }
      columns.store(p.dx, row + i, p.N, p.F, dx);
    }
  }
#pragma unroll
  for (int j = 0; j < kVecSize; j++) sums[warp][threadIdx.x % kWarpSize * kVecSize + j] = dbias[j];
  __syncthreads();
  for (int c = threadIdx.x; c < kWarpColumns; c += kThreads) {
    const int column = blockIdx.y * kWarpColumns + c;
    if (column >= p.F) break;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kWarps; i++) sum += sums[i][c];
    store_global(p.partials + static_cast<int64_t>(blockIdx.x) * p.F + column, sum);
  }
}

}  // namespace

void bias_gelu_forward(const Array& x, const Array& bias, const Array& y, bool tanh, Stream stream) {
  check(x.rank == 2, "x must have shape (N, F), got ", x.rank, " dimensions");
  const int64_t N = x.shape[0], F = x.shape[1];
  x.expect("x", x.dtype, {N, F});
  y.expect("y", x.dtype, {N, F});
  check(N <= kMaxRows, "the kernels take at most 2^30 rows, got ", N);
  with_input_type(x.dtype, [&](auto type) {
    using input_t = typename decltype(type)::type;
    const ForwardParams<input_t> p{.x = x.as<input_t>(),
                                   .bias = parameter("bias", bias, x.dtype, F),
                                   .y = y.as<input_t>(),
                                   .N = static_cast<int>(N),
                                   .F = static_cast<int>(F),
                                   .tanh = tanh};
    with_bool(F % kVecSize == 0 && aligned16({x, bias, y}), [&](auto wide) {
      launch(forward_kernel<input_t, wide.value>, dim3(grid_dim(N, kWarps * kForwardRows), grid_dim(F, kWarpColumns)),
             kThreads, 0, stream, p);
    });
  });
}

void bias_gelu_backward(const Array& dy, const Array& x, const Array& bias, const Array& dx, const Array& dbias,
                        bool tanh, const Array& partials, Stream stream) {
  check(x.rank == 2, "x must have shape (N, F), got ", x.rank, " dimensions");
  const int64_t N = x.shape[0], F = x.shape[1];
  for (const auto& [what, array] : {std::pair("dy", dy), {"x", x}, {"dx", dx}}) array.expect(what, x.dtype, {N, F});
  check(N <= kMaxRows, "the kernels take at most 2^30 rows, got ", N);
  const int64_t P = check_partials(partials, 1, F);
  with_input_type(x.dtype, [&](auto type) {
    using input_t = typename decltype(type)::type;
    const BackwardParams<input_t> p{.dy = dy.as<input_t>(),
                                    .x = x.as<input_t>(),
                                    .bias = parameter("bias", bias, x.dtype, F),
                                    .dx = dx.as<input_t>(),
                                    .partials = partials.as<float>(),
                                    .N = static_cast<int>(N),
                                    .F = static_cast<int>(F),
                                    .tanh = tanh};
    with_bool(F % kVecSize == 0 && aligned16({dy, x, bias, dx, partials}), [&](auto wide) {
      launch(backward_kernel<input_t, wide.value>, dim3(grid_dim(P, 1), grid_dim(F, kWarpColumns)), kThreads, 0, stream,
             p);
    });
  });
  sum_partials(partials, dbias, Array{}, Array{}, stream);
}

}  // namespace fastlm
