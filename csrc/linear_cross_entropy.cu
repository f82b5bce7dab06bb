// Rows of logits to losses and log-sum-exps and, in place, to the logits' gradients.
//
// Bytes a row of V logits of b bytes: read once and, with gradients, written once, 2bV. For GPT-1's 32768 x 40478 in
// bf16, at the 3.0 TB/s that a copy reaches on an H100, 1.77 ms: the floor. Every logit has a part in the sum that each
// gradient is divided by, so between the two the row must be somewhere: in shared memory, where 79 KB leave room for a
// second row whose loads go on while this one is written. A row that does not fit (V > 116,000 in half precision on an
// H100) is read twice, the second time backwards, so that what the L2 cache saw last comes first.
//
// A thread reads back only what it loaded itself: the row needs no barrier, and there is one in all, for the sums.
#include "common/launch.cuh"
#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "common/rows.cuh"
#include "linear_cross_entropy.h"

namespace fastlm {

namespace {

constexpr int kThreads = 512, kWarps = kThreads / kWarpSize;
constexpr int kParts = 4;             // of a row: one is worked on while the others are on their way
constexpr float kLowest = -1e38f;     // where maxima begin; with -inf, -inf - -inf would be NaN
constexpr size_t kScratch = 1 << 10;  // bytes of shared memory, at most, beside the row

template <typename input_t>
struct Rows {
  input_t* logits;         // (n, padded), then the gradients
  const int64_t* targets;  // (n,)
  Parameter weights;       // (n,), or null
  float* losses;           // (n,)
  float* lse;              // (n,)
  int vocabulary, padded;
  int64_t ignore_index;
  float label_smoothing, z_loss;
  bool need_gradient;
};

// exp(x). In half precision by one multiplication, whose rounding, 2^-24 of the exponent, is far below that of the
// logits, and with results under 2^-126 as 0.
template <typename input_t>
__device__ __forceinline__ float exp_of(float x) {
  if constexpr (sizeof(input_t) == 2) return exp2_approx(x * 1.4426950408889634f);
  return expf(x);
}

// Of some logits: their maximum, the sum of exp(x - top), the sum of x.
template <typename input_t>
struct Statistics {
  float top, total, plain;

  __device__ __forceinline__ static Statistics none() { return {kLowest, 0.0f, 0.0f}; }

  template <int kN>
  __device__ __forceinline__ void add(const float (&x)[kN]) {
    float higher = top;
#pragma unroll
    for (int j = 0; j < kN; j++) higher = fmaxf(higher, x[j]);
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kN; j++) sum += exp_of<input_t>(x[j] - higher);
    total = total * exp_of<input_t>(top - higher) + sum;
    top = higher;
  }

  // Brought to another maximum.
  __device__ __forceinline__ float total_at(float higher) const { return total * exp_of<input_t>(top - higher); }
};

// The statistics of all threads' logits, the same bits in each. `scratch` is shared memory.
template <typename input_t>
__device__ __forceinline__ Statistics<input_t> over_block(const Statistics<input_t>& own,
                                                          Statistics<input_t> (&scratch)[kWarps]) {
  Statistics<input_t> warp;
  warp.top = own.top;
#pragma unroll
  for (int by = kWarpSize / 2; by > 0; by /= 2) warp.top = fmaxf(warp.top, __shfl_xor_sync(kAllLanes, warp.top, by));
  warp.total = warp_sum(own.total_at(warp.top));
  warp.plain = warp_sum(own.plain);
  if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = warp;
  __syncthreads();
  auto all = Statistics<input_t>::none();
#pragma unroll
  for (int i = 0; i < kWarps; i++) all.top = fmaxf(all.top, scratch[i].top);
#pragma unroll
  for (int i = 0; i < kWarps; i++) {
    all.total += scratch[i].total_at(all.top);
    all.plain += scratch[i].plain;
  }
  return all;
}

// A block's row: vector v of kLength logits is thread v % kThreads's.
template <typename input_t, bool kResident>
struct Row {
  static constexpr int kLength = 16 / sizeof(input_t);
  using Vector = Vec<input_t, kLength>;

  input_t* row;  // in global memory
  uint4* copy;   // of the row in shared memory, where it is resident
  int vocabulary, vectors;

  __device__ __forceinline__ int part_end(int part) const {
    const int turns = (vectors + kThreads - 1) / kThreads;
    return min(vectors, (turns * (part + 1) + kParts - 1) / kParts * kThreads);
  }

  __device__ __forceinline__ void start_loading() const {
    int v = threadIdx.x;
#pragma unroll
    for (int part = 0; part < kParts; part++) {
      for (; v < part_end(part); v += kThreads) cp_async(copy + v, row + v * kLength, true);
      cp_async_commit();
    }
  }

  // Vector v; what is padding is -inf.
  __device__ __forceinline__ void load(int v, float (&x)[kLength]) const {
    Vector vector;
    if constexpr (kResident) {
      const uint4 words = copy[v];
      vector.words[0] = words.x, vector.words[1] = words.y, vector.words[2] = words.z, vector.words[3] = words.w;
    } else {
      vector = load_vec<kLength, true>(row + v * kLength, kLength);
    }
    vector.copy_to(x);
    const int inside = vocabulary - v * kLength;
    if (inside < kLength) {
#pragma unroll
      for (int j = 0; j < kLength; j++) {
        if (j >= inside) x[j] = -INFINITY;
      }
    }
  }

  __device__ __forceinline__ void add_to(Statistics<input_t>& statistics, int v, bool smoothed) const {
    float x[kLength];
    load(v, x);
    statistics.add(x);
    if (!smoothed) return;
#pragma unroll
    for (int j = 0; j < kLength; j++) {
      if (v * kLength + j < vocabulary) statistics.plain += x[j];
    }
  }

  __device__ __forceinline__ Statistics<input_t> statistics(bool smoothed) const {
    auto own = Statistics<input_t>::none();
    int v = threadIdx.x;
    if constexpr (kResident) {
#pragma unroll
      for (int part = 0; part < kParts; part++) {
        part == 0   ? cp_async_wait<3>()
        : part == 1 ? cp_async_wait<2>()
        : part == 2 ? cp_async_wait<1>()
                    : cp_async_wait<0>();
        for (; v < part_end(part); v += kThreads) add_to(own, v, smoothed);
      }
    } else {
      for (; v < vectors; v += kThreads) add_to(own, v, smoothed);
    }
    return own;
  }

  __device__ __forceinline__ void store(int v, const float (&values)[kLength]) const {
    store_vec<kLength, true>(row + v * kLength, Vector::of(values), kLength);
  }
};
static_assert(kParts == 4, "Row::statistics waits for four");

template <typename input_t, bool kResident>
__global__ void __launch_bounds__(kThreads, 2) rows_kernel(const Rows<input_t> p) {
  using Row = Row<input_t, kResident>;
  __shared__ Statistics<input_t> scratch[kWarps];
  const int64_t n = blockIdx.x;
  const Row row{p.logits + n * p.padded, kResident ? dynamic_shared<uint4>() : nullptr, p.vocabulary,
                p.padded / Row::kLength};
  const int64_t target = load_global<Use::kRepeated>(p.targets + n);
  const bool smoothed = p.label_smoothing > 0.0f;

  if (target == p.ignore_index) {
    if (threadIdx.x == 0) {
      store_global(p.losses + n, 0.0f);
      store_global(p.lse + n, 0.0f);
    }
    const float zeros[Row::kLength] = {};
    for (int v = threadIdx.x; p.need_gradient && v < row.vectors; v += kThreads) row.store(v, zeros);
    return;
  }

  if constexpr (kResident) row.start_loading();
  // No host looks at targets on a GPU: one out of range makes the row's loss and gradients NaN.
  const bool inside = 0 <= target && target < p.vocabulary;
  float weight = inside ? 1.0f : NAN;
  if (p.weights.data) {
    weight *= p.weights.is_float ? load_global<Use::kRepeated>(static_cast<const float*>(p.weights.data) + n)
                                 : float(load_global<Use::kRepeated>(static_cast<const input_t*>(p.weights.data) + n));
  }
  const float x_target = inside ? float(load_global<Use::kRepeated>(row.row + target)) : 0.0f;

  const Statistics<input_t> all = over_block(row.statistics(smoothed), scratch);
  const float lse = all.top + logf(all.total);
  if (threadIdx.x == 0) {
    const float mean = all.plain / p.vocabulary;
    const float loss = lse - (1.0f - p.label_smoothing) * x_target - p.label_smoothing * mean + p.z_loss * lse * lse;
    store_global(p.losses + n, weight * loss);
    store_global(p.lse + n, lse);
  }
  if (!p.need_gradient) return;

  // w * (softmax * (1 + 2 * z * lse) - (1 - e) * onehot - e / V), and 0 in the padding
  const float factor = weight * (1.0f + 2.0f * p.z_loss * lse) / all.total;
  const float onehot = weight * (1.0f - p.label_smoothing), uniform = weight * p.label_smoothing / p.vocabulary;
  const int last = (row.vectors - 1 - static_cast<int>(threadIdx.x)) / kThreads;  // of this thread's vectors
  for (int i = static_cast<int>(threadIdx.x) < row.vectors ? last : -1; i >= 0; i--) {
    const int v = threadIdx.x + i * kThreads;
    float x[Row::kLength];
    row.load(v, x);
#pragma unroll
    for (int j = 0; j < Row::kLength; j++) x[j] = exp_of<input_t>(x[j] - all.top) * factor;
    const int64_t at = target - v * Row::kLength;
    const int columns = p.vocabulary - v * Row::kLength;
    if (smoothed || (0 <= at && at < Row::kLength) || columns < Row::kLength) {
#pragma unroll
      for (int j = 0; j < Row::kLength; j++) {
        x[j] = j < columns ? x[j] - uniform - (j == at ? onehot : 0.0f) : 0.0f;
      }
    }
    row.store(v, x);
  }
}

}  // namespace

void cross_entropy_rows(const Array& logits, const Array& targets, const Array& row_weights, const Array& losses,
                        const Array& lse, int64_t vocabulary, int64_t ignore_index, float label_smoothing, float z_loss,
                        bool need_gradient, Stream stream) {
  check(logits.rank == 2, "logits must have shape (n, padded), got ", logits.rank, " dimensions");
  const int64_t n = logits.shape[0], padded = logits.shape[1];
  logits.expect("logits", logits.dtype, {n, padded});
  targets.expect("targets", DType::kInt64, {n});
  losses.expect("losses", DType::kFloat32, {n});
  lse.expect("lse", DType::kFloat32, {n});
  check(0 < vocabulary && vocabulary <= padded, "vocabulary must be from 1 to ", padded, ", got ", vocabulary);
  check(padded % 64 == 0 && padded < 1 << 30, "logits must have a multiple of 64 columns under 2^30, got ", padded);
  check(aligned16({logits}), "logits must be aligned to 16 bytes");
  with_input_type(logits.dtype, [&](auto type) {
    using input_t = typename decltype(type)::type;
    const Rows<input_t> p{.logits = logits.as<input_t>(),
                          .targets = targets.as<int64_t>(),
                          .weights = parameter("row_weights", row_weights, logits.dtype, n),
                          .losses = losses.as<float>(),
                          .lse = lse.as<float>(),
                          .vocabulary = static_cast<int>(vocabulary),
                          .padded = static_cast<int>(padded),
                          .ignore_index = ignore_index,
                          .label_smoothing = label_smoothing,
                          .z_loss = z_loss,
                          .need_gradient = need_gradient};
    const size_t bytes = padded * sizeof(input_t);
    if (bytes + kScratch <= most_shared_memory()) {
      launch(rows_kernel<input_t, true>, blocks(n, 1), kThreads, bytes, stream, p);
    } else {
      launch(rows_kernel<input_t, false>, blocks(n, 1), kThreads, 0, stream, p);
    }
  });
}

}  // namespace fastlm
