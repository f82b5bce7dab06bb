// AdamW (Loshchilov and Hutter 2019) with clipping by the global norm, over all parameters of a model in two launches:
// the sum of the gradients' squares, then the update. A sharded run adds up the squares of its ranks in between.
//
// Bytes per parameter: the squares read the gradient, 4 in float32 and 2 in bfloat16; the update reads parameter,
// gradient and both moments and writes all but the gradient, 28 in float32 and 22 in bfloat16. For GPT-1's 117 million
// parameters in float32 the lower bound on an H100 is 1.25 ms, set by HBM (3.0 TB/s; computed, not measured). The
// clipping factor needs the whole norm, hence two passes over the gradients.
//
// A CTA processes one slice at a time: kSlice elements of one tensor. The table of tensors is a kernel argument, so no
// copy to the device is needed. Values that change from step to step (rates, decays, corrections, max_norm, scale) are
// in device memory, so a captured CUDA graph can be replayed with other values. All sums are added in a fixed order, so
// the results are deterministic.
#include <algorithm>
#include <cmath>

#include "adamw.h"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/static_switch.h"
#include "common/vec.cuh"

namespace fastlm {

namespace {

constexpr int kThreads = 256;
constexpr int kVecSize = 8;                      // elements of a thread's vector
constexpr int kSlice = kThreads * kVecSize * 4;  // elements per slice
constexpr int kMaxTensors = 480;                 // per launch, because kernel arguments are limited to 32,764 bytes

struct Tensor {
  void* parameter = nullptr;       // (count,), or null in squares_kernel
  const void* gradient = nullptr;  // (count,)
  float* first_moment = nullptr;   // (count,), or null in squares_kernel
  float* second_moment = nullptr;  // (count,), or null in squares_kernel
  int64_t count = 0;
  int first_slice = 0;
  DType dtype = DType::kFloat32;
  bool wide = false;  // whether all of these arrays are aligned to 16 bytes
};

struct TensorTable {
  int tensors, slices;
  Tensor tensor[kMaxTensors];

  // Returns the index of the tensor that contains a slice.
  __device__ __forceinline__ int tensor_of(int slice) const {
    int low = 0, high = tensors;  // the tensor is in [low, high)
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (tensor[middle].first_slice <= slice ? low : high) = middle;
    }
    return low;
  }
};
static_assert(sizeof(TensorTable) <= 32000);

// The other arguments of the update. Arrays with one value per tensor begin at the table's first tensor.
struct UpdateParams {
  const float* rates;        // (tensors,)
  const float* decays;       // (tensors,)
  const float* corrections;  // (tensors, 2), or null: no bias correction
  const float* squares;      // (K,)
  const float* max_norm;     // (), or null: no clipping
  const float* scale;        // (), or null: 1
  float* norm;               // ()
  int K;
  float one_minus_beta1, beta2, one_minus_beta2, eps;  // 1 - beta is computed in float64 and rounded once
};

__device__ __forceinline__ float load_scalar(const float* from) { return load_global<Use::kRepeated>(from); }

template <typename T>
__device__ __forceinline__ void load(const Tensor& t, const void* from, int64_t offset, float (&values)[kVecSize]) {
  const int64_t left = t.count - offset;
  const T* const source = static_cast<const T*>(from) + offset;
  if (t.wide && left >= kVecSize) {
    load_vec<kVecSize, true>(source, kVecSize).copy_to(values);
  } else {
    load_vec<kVecSize, false>(source, static_cast<int>(min(left, static_cast<int64_t>(kVecSize)))).copy_to(values);
  }
}

template <typename T>
__device__ __forceinline__ void store(const Tensor& t, void* to, int64_t offset, const float (&values)[kVecSize]) {
  const int64_t left = t.count - offset;
  T* const target = static_cast<T*>(to) + offset;
  const auto vec = Vec<T, kVecSize>::of(values);
  if (t.wide && left >= kVecSize) {
    store_vec<kVecSize, true>(target, vec, kVecSize);
  } else {
    store_vec<kVecSize, false>(target, vec, static_cast<int>(min(left, static_cast<int64_t>(kVecSize))));
  }
}

// Calls function(type, offset) for each vector of a slice that this thread processes.
template <typename Function>
__device__ __forceinline__ void for_each_vec(const Tensor& t, int slice, Function&& function) {
  const int64_t first = static_cast<int64_t>(slice - t.first_slice) * kSlice + threadIdx.x * kVecSize;
#pragma unroll
  for (int i = 0; i < kSlice; i += kThreads * kVecSize) {
    if (first + i >= t.count) break;
    switch (t.dtype) {
      case DType::kFloat16:
        function(Type<half_t>{}, first + i);
        break;
      case DType::kBFloat16:
        function(Type<bf16_t>{}, first + i);
        break;
      default:
        function(Type<float>{}, first + i);
    }
  }
}

// Returns the sum over a CTA, in every thread. `scratch` is shared memory.
__device__ __forceinline__ float block_sum(float x, float (&scratch)[kThreads / kWarpSize]) {
  x = warp_sum(x);
  if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  x = 0.0f;
#pragma unroll
  for (int i = 0; i < kThreads / kWarpSize; i++) x += scratch[i];
  return x;
}

__global__ void __launch_bounds__(kThreads, 4)
    squares_kernel(const __grid_constant__ TensorTable table, float* squares) {
  __shared__ float scratch[kThreads / kWarpSize];
  float sum = 0.0f;
  for (int slice = blockIdx.x; slice < table.slices; slice += gridDim.x) {
    const Tensor& t = table.tensor[table.tensor_of(slice)];
    for_each_vec(t, slice, [&](auto type, int64_t offset) {
      float g[kVecSize];
      load<typename decltype(type)::type>(t, t.gradient, offset, g);
#pragma unroll
      for (int j = 0; j < kVecSize; j++) sum += g[j] * g[j];
    });
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) store_global(squares + blockIdx.x, sum);
}

// Returns the factor for the gradients: the scale, times the clipping factor if there is a max_norm.
__device__ __forceinline__ float gradient_factor(const UpdateParams& u) {
  __shared__ float scratch[kThreads / kWarpSize];
  const float scale = u.scale ? load_scalar(u.scale) : 1.0f;
  float sum = 0.0f;
  for (int i = threadIdx.x; i < u.K; i += kThreads) sum += load_scalar(u.squares + i);
  const float norm = scale * sqrtf(block_sum(sum, scratch));
  if (blockIdx.x == 0 && threadIdx.x == 0) store_global(u.norm, norm);
  if (!u.max_norm) return scale;
  // If the norm is not finite, the factor is meaningless too. The caller must check the norm.
  const float max_norm = load_scalar(u.max_norm);
  return scale * (norm <= max_norm ? 1.0f : max_norm / norm);
}

__global__ void __launch_bounds__(kThreads, 3)
    update_kernel(const __grid_constant__ TensorTable table, const UpdateParams u) {
  const float factor = gradient_factor(u);
  for (int slice = blockIdx.x; slice < table.slices; slice += gridDim.x) {
    const int i = table.tensor_of(slice);
    const Tensor& t = table.tensor[i];
    const float rate = load_scalar(u.rates + i), decay_factor = 1.0f - rate * load_scalar(u.decays + i);
    const float step = u.corrections ? rate / load_scalar(u.corrections + 2 * i) : rate;
    const float inv_sqrt_c2 = u.corrections ? rsqrtf(load_scalar(u.corrections + 2 * i + 1)) : 1.0f;
    for_each_vec(t, slice, [&](auto type, int64_t offset) {
      using T = typename decltype(type)::type;
      float p[kVecSize], g[kVecSize], m[kVecSize], v[kVecSize];
      load<T>(t, t.parameter, offset, p);
      load<T>(t, t.gradient, offset, g);
      load<float>(t, t.first_moment, offset, m);
      load<float>(t, t.second_moment, offset, v);
#pragma unroll
      for (int j = 0; j < kVecSize; j++) {
        const float scaled = g[j] * factor;
        m[j] += u.one_minus_beta1 * (scaled - m[j]);
        v[j] = u.beta2 * v[j] + u.one_minus_beta2 * scaled * scaled;
        p[j] = decay_factor * p[j] - step * m[j] / (sqrtf(v[j]) * inv_sqrt_c2 + u.eps);
      }
      store<T>(t, t.parameter, offset, p);
      store<float>(t, t.first_moment, offset, m);
      store<float>(t, t.second_moment, offset, v);
    });
  }
}

int num_slices(int64_t count) { return static_cast<int>((count + kSlice - 1) / kSlice); }

bool is_activation(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat16 || dtype == DType::kBFloat16;
}

int64_t checked_count(const char* what, const Array& array) {
  check(bool(array), what, " must be tensors, got None");
  check(is_activation(array.dtype), what, " must be float32, float16 or bfloat16, got ", name(array.dtype));
  check(array.contiguous(), what, " must be contiguous");
  int64_t count = 1;
  for (int i = 0; i < array.rank; i++) count *= array.shape[i];
  check(count < int64_t{1} << 40, what, " must have fewer than 2^40 elements, got ", count);
  return count;
}

// Makes the table of one launch, which begins at tensor `first`. Calls fill(i, tensor) for each tensor i of the table.
template <typename Fill>
TensorTable make_table(size_t first, size_t all, Fill&& fill) {
  TensorTable table{};
  const size_t last = std::min(all, first + kMaxTensors);
  for (size_t i = first; i < last; i++) {
    Tensor& t = table.tensor[table.tensors++];
    fill(i, t);
    t.first_slice = table.slices;
    table.slices += num_slices(t.count);
  }
  return table;
}

int64_t num_launches(size_t tensors) { return (static_cast<int64_t>(tensors) + kMaxTensors - 1) / kMaxTensors; }

}  // namespace

void gradient_squares(const std::vector<Array>& gradients, const Array& squares, Stream stream) {
  check(squares.rank == 1 && squares.shape[0] % num_launches(gradients.size()) == 0,
        "squares must have shape (K,), K a multiple of the ", num_launches(gradients.size()), " launches");
  squares.expect("squares", DType::kFloat32, {squares.shape[0]});
  const int64_t P = squares.shape[0] / num_launches(gradients.size());
  for (size_t first = 0; first < gradients.size(); first += kMaxTensors) {
    const TensorTable table = make_table(first, gradients.size(), [&](size_t i, Tensor& t) {
      const Array& g = gradients[i];
      t = {.gradient = g.data, .count = checked_count("gradients", g), .dtype = g.dtype, .wide = aligned16({g})};
    });
    launch(squares_kernel, grid_dim(P, 1), kThreads, 0, stream, table, squares.as<float>() + first / kMaxTensors * P);
  }
}

void adamw(const std::vector<Array>& parameters, const std::vector<Array>& gradients,
           const std::vector<Array>& first_moments, const std::vector<Array>& second_moments, const Array& rates,
           const Array& decays, const Array& corrections, const Array& squares, const Array& max_norm,
           const Array& scale, const Array& norm, double beta1, double beta2, float eps, int num_ctas, Stream stream) {
  const size_t n = parameters.size();
  for (const size_t count : {gradients.size(), first_moments.size(), second_moments.size()}) {
    check(count == n, "there must be as many gradients and moments as parameters, ", n, ", got ", count);
  }
  const auto rows = static_cast<int64_t>(n);
  rates.expect("rates", DType::kFloat32, {rows});
  decays.expect("decays", DType::kFloat32, {rows});
  if (corrections) corrections.expect("corrections", DType::kFloat32, {rows, 2});
  check(squares.rank == 1, "squares must have shape (K,), got ", squares.rank, " dimensions");
  squares.expect("squares", DType::kFloat32, {squares.shape[0]});
  check(squares.shape[0] <= INT32_MAX, "there can be at most 2^31 - 1 squares, got ", squares.shape[0]);
  if (max_norm) max_norm.expect("max_norm", DType::kFloat32, {});
  if (scale) scale.expect("scale", DType::kFloat32, {});
  norm.expect("norm", DType::kFloat32, {});
  for (size_t first = 0; first < n; first += kMaxTensors) {
    const TensorTable table = make_table(first, n, [&](size_t i, Tensor& t) {
      const Array &p = parameters[i], &g = gradients[i], &m = first_moments[i], &v = second_moments[i];
      const int64_t count = checked_count("parameters", p);
      check(g.dtype == p.dtype, "a gradient must have its parameter's dtype ", name(p.dtype), ", got ", name(g.dtype));
      check(m.dtype == DType::kFloat32 && v.dtype == DType::kFloat32, "moments must be float32");
      for (const auto& [what, array] : {std::pair("gradients", g), {"first moments", m}, {"second moments", v}}) {
        const int64_t given = checked_count(what, array);
        check(given == count, what, " must have their parameter's ", count, " elements, got ", given);
      }
      t = {.parameter = p.data,
           .gradient = g.data,
           .first_moment = m.as<float>(),
           .second_moment = v.as<float>(),
           .count = count,
           .dtype = p.dtype,
           .wide = aligned16({p, g, m, v})};
    });
    const UpdateParams u{.rates = rates.as<float>() + first,
                         .decays = decays.as<float>() + first,
                         .corrections = corrections ? corrections.as<float>() + 2 * first : nullptr,
                         .squares = squares.as<float>(),
                         .max_norm = max_norm.as<float>(),
                         .scale = scale.as<float>(),
                         .norm = norm.as<float>(),
                         .K = static_cast<int>(squares.shape[0]),
                         .one_minus_beta1 = static_cast<float>(1 - beta1),
                         .beta2 = static_cast<float>(beta2),
                         .one_minus_beta2 = static_cast<float>(1 - beta2),
                         .eps = eps};
    launch(update_kernel, grid_dim(num_ctas, 1), kThreads, 0, stream, table, u);
  }
}

}  // namespace fastlm
