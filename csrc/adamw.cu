// AdamW (Loshchilov and Hutter 2019) with clipping by the global norm, over all parameters of a model in two launches.
//
// Bytes a parameter, in float32: the norm reads the gradient, 4; the update reads parameter, gradient and both moments
// and writes all but the gradient, 28. In bfloat16 2 and 22. For GPT-1's 117 million in float32, at the 3.0 TB/s that a
// copy reaches on an H100, 1.25 ms: the floor. The clipping factor needs the whole norm, hence two passes over the
// gradients.
//
// The table of tensors travels as a kernel's argument, so that nothing is copied to the device and nothing waits. Each
// of P blocks adds up its chunks in one order, and each block of the update all P sums in one order: the same bits each
// time.
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
constexpr int kLane = 8;                      // elements of a thread's vector
constexpr int kChunk = kThreads * kLane * 4;  // elements that a block takes in a turn
constexpr int kTensors = 420;                 // of a launch, whose arguments may have 32,764 bytes

struct Tensor {
  void* parameter = nullptr;       // (count,), or null in the norm
  const void* gradient = nullptr;  // (count,)
  float* first_moment = nullptr;   // (count,), or null in the norm
  float* second_moment = nullptr;  // (count,), or null in the norm
  int64_t count = 0;
  int first_chunk = 0;
  float rate = 0.0f, decay = 0.0f, correction1 = 1.0f, correction2 = 1.0f;
  DType dtype = DType::kFloat32;
  bool wide = false;  // all that are given are aligned to 16 bytes
};

struct Table {
  int tensors, chunks;
  Tensor tensor[kTensors];

  // The tensor that a chunk is part of.
  __device__ __forceinline__ const Tensor& of_chunk(int chunk) const {
    int low = 0, high = tensors;  // the tensor is in [low, high)
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (tensor[middle].first_chunk <= chunk ? low : high) = middle;
    }
    return tensor[low];
  }
};
static_assert(sizeof(Table) <= 32000);

struct Update {
  const float* partials;  // (count,), or null: no clipping
  int count;
  float* norm;  // (1,), or null
  float scale, max_norm, beta1, beta2, eps;
};

template <typename T>
__device__ __forceinline__ void load(const Tensor& t, const void* from, int64_t at, float (&values)[kLane]) {
  const int64_t left = t.count - at;
  const T* const source = static_cast<const T*>(from) + at;
  if (t.wide && left >= kLane) {
    load_vec<kLane, true>(source, kLane).copy_to(values);
  } else {
    load_vec<kLane, false>(source, static_cast<int>(min(left, static_cast<int64_t>(kLane)))).copy_to(values);
  }
}

template <typename T>
__device__ __forceinline__ void store(const Tensor& t, void* to, int64_t at, const float (&values)[kLane]) {
  const int64_t left = t.count - at;
  T* const target = static_cast<T*>(to) + at;
  const auto vec = Vec<T, kLane>::of(values);
  if (t.wide && left >= kLane) {
    store_vec<kLane, true>(target, vec, kLane);
  } else {
    store_vec<kLane, false>(target, vec, static_cast<int>(min(left, static_cast<int64_t>(kLane))));
  }
}

// function(type, at) for the vectors of a chunk that are this thread's.
template <typename Function>
__device__ __forceinline__ void for_vectors(const Tensor& t, int chunk, Function&& function) {
  const int64_t first = static_cast<int64_t>(chunk - t.first_chunk) * kChunk + threadIdx.x * kLane;
#pragma unroll
  for (int i = 0; i < kChunk; i += kThreads * kLane) {
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

// The sum over a block, in every thread. `scratch` is shared memory.
__device__ __forceinline__ float block_sum(float x, float (&scratch)[kThreads / kWarpSize]) {
  x = warp_sum(x);
  if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  x = 0.0f;
#pragma unroll
  for (int i = 0; i < kThreads / kWarpSize; i++) x += scratch[i];
  return x;
}

__global__ void __launch_bounds__(kThreads, 4) norm_kernel(const __grid_constant__ Table table, float* partials) {
  __shared__ float scratch[kThreads / kWarpSize];
  float sum = 0.0f;
  for (int chunk = blockIdx.x; chunk < table.chunks; chunk += gridDim.x) {
    const Tensor& t = table.of_chunk(chunk);
    for_vectors(t, chunk, [&](auto type, int64_t at) {
      float g[kLane];
      load<typename decltype(type)::type>(t, t.gradient, at, g);
#pragma unroll
      for (int j = 0; j < kLane; j++) sum += g[j] * g[j];
    });
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) store_global(partials + blockIdx.x, sum);
}

__global__ void __launch_bounds__(kThreads, 3) update_kernel(const __grid_constant__ Table table, const Update u) {
  __shared__ float scratch[kThreads / kWarpSize];
  float scale = u.scale;
  if (u.partials) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < u.count; i += kThreads) sum += load_global<Use::kRepeated>(u.partials + i);
    const float norm = u.scale * sqrtf(block_sum(sum, scratch));
    if (u.norm && blockIdx.x == 0 && threadIdx.x == 0) store_global(u.norm, norm);
    // A norm that is no number makes the factor none either: whoever reads the norm has to look.
    scale *= norm <= u.max_norm ? 1.0f : u.max_norm / norm;
  }
  for (int chunk = blockIdx.x; chunk < table.chunks; chunk += gridDim.x) {
    const Tensor& t = table.of_chunk(chunk);
    const float kept = 1.0f - t.rate * t.decay, step = t.rate / t.correction1;
    const float root = rsqrtf(t.correction2);
    for_vectors(t, chunk, [&](auto type, int64_t at) {
      using T = typename decltype(type)::type;
      float p[kLane], g[kLane], m[kLane], v[kLane];
      load<T>(t, t.parameter, at, p);
      load<T>(t, t.gradient, at, g);
      load<float>(t, t.first_moment, at, m);
      load<float>(t, t.second_moment, at, v);
#pragma unroll
      for (int j = 0; j < kLane; j++) {
        const float scaled = g[j] * scale;
        m[j] += (1.0f - u.beta1) * (scaled - m[j]);
        v[j] = u.beta2 * v[j] + (1.0f - u.beta2) * scaled * scaled;
        p[j] = kept * p[j] - step * m[j] / (sqrtf(v[j]) * root + u.eps);
      }
      store<T>(t, t.parameter, at, p);
      store<float>(t, t.first_moment, at, m);
      store<float>(t, t.second_moment, at, v);
    });
  }
}

int chunks_of(int64_t count) { return static_cast<int>((count + kChunk - 1) / kChunk); }

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

// fill(i, tensor) for the tensors from `first` on, as many as one launch takes.
template <typename Fill>
Table make_table(size_t first, size_t all, Fill&& fill) {
  Table table{};
  const size_t last = std::min(all, first + kTensors);
  for (size_t i = first; i < last; i++) {
    Tensor& t = table.tensor[table.tensors++];
    fill(i, t);
    t.first_chunk = table.chunks;
    table.chunks += chunks_of(t.count);
  }
  return table;
}

int64_t launches(size_t tensors) { return (static_cast<int64_t>(tensors) + kTensors - 1) / kTensors; }

}  // namespace

void adamw_norm(const std::vector<Array>& gradients, const Array& partials, Stream stream) {
  check(partials.rank == 2, "partials must have shape (launches, P), got ", partials.rank, " dimensions");
  const int64_t P = partials.shape[1];
  partials.expect("partials", DType::kFloat32, {launches(gradients.size()), P});
  for (size_t first = 0; first < gradients.size(); first += kTensors) {
    const Table table = make_table(first, gradients.size(), [&](size_t i, Tensor& t) {
      const Array& g = gradients[i];
      t = {.gradient = g.data, .count = checked_count("gradients", g), .dtype = g.dtype, .wide = aligned16({g})};
    });
    launch(norm_kernel, blocks(P, 1), kThreads, 0, stream, table, partials.as<float>() + first / kTensors * P);
  }
}

void adamw_update(const std::vector<Array>& parameters, const std::vector<Array>& gradients,
                  const std::vector<Array>& first_moments, const std::vector<Array>& second_moments,
                  const std::vector<float>& rates, const std::vector<float>& decays,
                  const std::vector<float>& corrections1, const std::vector<float>& corrections2, const Array& partials,
                  const Array& norm, float scale, float max_norm, float beta1, float beta2, float eps, Stream stream) {
  const size_t all = parameters.size();
  for (const size_t count : {gradients.size(), first_moments.size(), second_moments.size(), rates.size(), decays.size(),
                             corrections1.size(), corrections2.size()}) {
    check(count == all, "there must be as many of each as parameters, ", all, ", got ", count);
  }
  check(partials.rank == 2, "partials must have shape (launches, P), got ", partials.rank, " dimensions");
  const int64_t P = partials.shape[1];
  partials.expect("partials", DType::kFloat32, {launches(all), P});
  norm.expect("norm", DType::kFloat32, {1});
  const Update u{.partials = partials.as<float>(),
                 .count = static_cast<int>(launches(all) * P),
                 .norm = norm.as<float>(),
                 .scale = scale,
                 .max_norm = max_norm,
                 .beta1 = beta1,
                 .beta2 = beta2,
                 .eps = eps};
  for (size_t first = 0; first < all; first += kTensors) {
    const Table table = make_table(first, all, [&](size_t i, Tensor& t) {
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
           .rate = rates[i],
           .decay = decays[i],
           .correction1 = corrections1[i],
           .correction2 = corrections2[i],
           .dtype = p.dtype,
           .wide = aligned16({p, g, m, v})};
    });
    launch(update_kernel, blocks(P, 1), kThreads, 0, stream, table, u);
  }
}

}  // namespace fastlm
