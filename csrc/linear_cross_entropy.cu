// Computes loss and log-sum-exp of each row of logits, and their gradients, which may replace the logits.
//
// Bytes per row of V logits of b bytes: read once and, with gradients, written once, 2bV. For GPT-1's 32768 x 40478 in
// bf16 the lower bound on an H100 is 1.77 ms, set by HBM (3.0 TB/s; computed, not measured).
//
// Each gradient needs the sum over the whole row, so the row must be kept until the sum is known. It stays in shared
// memory: 79 KB, so that an SM holds two rows and one can be loaded while the other is written. A row that does not fit
// (V > 116,000 in half precision on an H100) is read twice, the second time backwards, because the L2 still holds its
// end.
//
// A thread reads only logits that it loaded itself, so the row needs no barrier. The only barrier is in the reduction.
//
// Rows of linear_cross_entropy are padded, so that each starts at 16 bytes. Those of cross_entropy are the caller's: a
// row starts anywhere, its vectors at the 16 bytes before, and a vector that is partly outside is accessed by elements.
#include "common/launch.cuh"
#include "common/ptx/copy.cuh"
#include "common/ptx/math.cuh"
#include "common/reduce.cuh"
#include "common/rows.cuh"
#include "linear_cross_entropy.h"

namespace fastlm {

namespace {

constexpr int kThreads = 512, kWarps = kThreads / kWarpSize;
constexpr int kCopyGroups = 4;     // groups of a row's loads; one is processed while later ones are in flight
constexpr float kLowest = -1e38f;  // the initial row_max; with -inf, exp(-inf - -inf) would be NaN
constexpr size_t kStaticSharedBytes = 1 << 10;  // bound on the kernel's static shared memory, in bytes

template <typename input_t>
struct Params {
  const input_t* logits;   // (n, padded)
  input_t* dlogits;        // (n, padded), may be `logits`; or null
  const int64_t* targets;  // (n,)
  Parameter weights;       // (n,), or null
  float* losses;           // (n,)
  float* lse;              // (n,)
  int vocabulary, padded;
  int64_t ignore_index;
  float label_smoothing, z_loss;
};

// Returns exp(x). For logits in half precision it is exp2_approx(x log2(e)): the multiplication's rounding error is far
// below that of the logits, and results below 2^-126 are 0.
template <typename input_t>
__device__ __forceinline__ float exp_logit(float x) {
  if constexpr (sizeof(input_t) == 2) return exp2_approx(x * 1.4426950408889634f);
  return expf(x);
}

// Statistics of a set of logits: their maximum, the sum of exp(x - row_max), and the sum of x.
template <typename input_t>
struct SoftmaxStats {
  float row_max, row_sum, logit_sum;

  __device__ __forceinline__ static SoftmaxStats empty() { return {kLowest, 0.0f, 0.0f}; }

  template <int kN>
  __device__ __forceinline__ void add(const float (&x)[kN]) {
    float new_max = row_max;
#pragma unroll
    for (int j = 0; j < kN; j++) new_max = fmaxf(new_max, x[j]);
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kN; j++) sum += exp_logit<input_t>(x[j] - new_max);
    row_sum = row_sum * exp_logit<input_t>(row_max - new_max) + sum;
    row_max = new_max;
  }

  // Returns row_sum rescaled to another maximum.
  __device__ __forceinline__ float rescaled_sum(float new_max) const {
    return row_sum * exp_logit<input_t>(row_max - new_max);
  }
};

// Combines the statistics of all threads. The result is bitwise the same in each. `scratch` is shared memory.
template <typename input_t>
__device__ __forceinline__ SoftmaxStats<input_t> reduce_over_cta(const SoftmaxStats<input_t>& own,
                                                                 SoftmaxStats<input_t> (&scratch)[kWarps]) {
  SoftmaxStats<input_t> warp;
  warp.row_max = own.row_max;
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2)
    warp.row_max = fmaxf(warp.row_max, __shfl_xor_sync(kAllLanes, warp.row_max, offset));
  warp.row_sum = warp_sum(own.rescaled_sum(warp.row_max));
  warp.logit_sum = warp_sum(own.logit_sum);
  if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = warp;
  __syncthreads();
  auto all = SoftmaxStats<input_t>::empty();
#pragma unroll
  for (int i = 0; i < kWarps; i++) all.row_max = fmaxf(all.row_max, scratch[i].row_max);
#pragma unroll
  for (int i = 0; i < kWarps; i++) {
    all.row_sum += scratch[i].rescaled_sum(all.row_max);
    all.logit_sum += scratch[i].logit_sum;
  }
  return all;
}

// The row that a CTA processes. Thread v % kThreads loads and processes vector v of kVecSize logits. The loads of the
// row are divided into kCopyGroups groups. If kPadded, the row starts at 16 bytes and holds whole vectors.
template <typename input_t, bool kInShared, bool kPadded>
struct Row {
  static constexpr int kVecSize = 16 / sizeof(input_t);
  using Vector = Vec<input_t, kVecSize>;

  const input_t* row;  // in global memory
  input_t* gradient;   // in global memory, aligned as `row`; or null
  uint4* shared_row;   // the row in shared memory, if kInShared
  int vocabulary, padded;
  int before, vectors;  // elements of vector 0 before the row; number of vectors

  __device__ __forceinline__ Row(const Params<input_t>& p, int64_t n)
      : row(p.logits + n * p.padded),
        gradient(p.dlogits ? p.dlogits + n * p.padded : nullptr),
        shared_row(kInShared ? dynamic_shared<uint4>() : nullptr),
        vocabulary(p.vocabulary),
        padded(p.padded),
        before(kPadded ? 0 : static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(input_t))),
        vectors((before + p.padded + kVecSize - 1) / kVecSize) {}

  // Returns the column of the first element of vector v, which may be negative.
  __device__ __forceinline__ int column(int v) const { return v * kVecSize - before; }

  __device__ __forceinline__ bool is_whole(int v) const {
    return kPadded || (column(v) >= 0 && column(v) + kVecSize <= padded);
  }

  // Returns the index after the last vector of a copy group.
  __device__ __forceinline__ int group_end(int group) const {
    const int turns = (vectors + kThreads - 1) / kThreads;
    return min(vectors, (turns * (group + 1) + kCopyGroups - 1) / kCopyGroups * kThreads);
  }

  // Returns vector v, element by element. Those outside the row are zeros.
  __device__ __forceinline__ Vector load_elements(int v) const {
    float x[kVecSize];
#pragma unroll
    for (int j = 0; j < kVecSize; j++) {
      const int c = column(v) + j;
      x[j] = 0 <= c && c < padded ? float(load_global<Use::kOnce>(row + c)) : 0.0f;
    }
    return Vector::of(x);
  }

  __device__ __forceinline__ void load_async() const {
    int v = threadIdx.x;
#pragma unroll
    for (int group = 0; group < kCopyGroups; group++) {
      for (; v < group_end(group); v += kThreads) {
        if (is_whole(v)) {
          cp_async(shared_row + v, row + column(v), true);
        } else {
          const Vector part = load_elements(v);
          shared_row[v] = uint4{part.words[0], part.words[1], part.words[2], part.words[3]};
        }
      }
      cp_async_commit();
    }
  }

  // Loads vector v into x. Elements outside the vocabulary become -inf.
  __device__ __forceinline__ void load(int v, float (&x)[kVecSize]) const {
    Vector vector;
    if constexpr (kInShared) {
      const uint4 words = shared_row[v];
      vector.words[0] = words.x, vector.words[1] = words.y, vector.words[2] = words.z, vector.words[3] = words.w;
    } else {
      vector = is_whole(v) ? load_vec<kVecSize, true>(row + column(v), kVecSize) : load_elements(v);
    }
    vector.copy_to(x);
    const int outside = -column(v), inside = vocabulary - column(v);
    if (outside > 0 || inside < kVecSize) {
#pragma unroll
      for (int j = 0; j < kVecSize; j++) {
        if (j < outside || j >= inside) x[j] = -INFINITY;
      }
    }
  }

  __device__ __forceinline__ void add_to(SoftmaxStats<input_t>& stats, int v, bool smoothed) const {
    float x[kVecSize];
    load(v, x);
    stats.add(x);
    if (!smoothed) return;
#pragma unroll
    for (int j = 0; j < kVecSize; j++) {
      if (0 <= column(v) + j && column(v) + j < vocabulary) stats.logit_sum += x[j];
    }
  }

  __device__ __forceinline__ SoftmaxStats<input_t> stats(bool smoothed) const {
    auto own = SoftmaxStats<input_t>::empty();
    int v = threadIdx.x;
    if constexpr (kInShared) {
#pragma unroll
      for (int group = 0; group < kCopyGroups; group++) {
        group == 0   ? cp_async_wait<3>()
        : group == 1 ? cp_async_wait<2>()
        : group == 2 ? cp_async_wait<1>()
                     : cp_async_wait<0>();
        for (; v < group_end(group); v += kThreads) add_to(own, v, smoothed);
      }
    } else {
      for (; v < vectors; v += kThreads) add_to(own, v, smoothed);
    }
    return own;
  }

  __device__ __forceinline__ void store(int v, const float (&values)[kVecSize]) const {
    if (is_whole(v)) {
      store_vec<kVecSize, true>(gradient + column(v), Vector::of(values), kVecSize);
      return;
    }
#pragma unroll
    for (int j = 0; j < kVecSize; j++) {
      const int c = column(v) + j;
      if (0 <= c && c < padded) store_global(gradient + c, input_t(values[j]));
    }
  }
};
static_assert(kCopyGroups == 4, "Row::stats waits for four groups");

template <typename input_t, bool kInShared, bool kPadded>
__global__ void __launch_bounds__(kThreads, 2) rows_kernel(const Params<input_t> p) {
  using Row = Row<input_t, kInShared, kPadded>;
  __shared__ SoftmaxStats<input_t> scratch[kWarps];
  const int64_t n = blockIdx.x;
  const Row row(p, n);
  const int64_t target = load_global<Use::kRepeated>(p.targets + n);
  const bool smoothed = p.label_smoothing > 0.0f;

  if (target == p.ignore_index) {
    if (threadIdx.x == 0) {
      store_global(p.losses + n, 0.0f);
      store_global(p.lse + n, 0.0f);
    }
    const float zeros[Row::kVecSize] = {};
    for (int v = threadIdx.x; row.gradient && v < row.vectors; v += kThreads) row.store(v, zeros);
    return;
  }

  if constexpr (kInShared) row.load_async();
  // Targets are in device memory, so the host cannot check them. One out of range makes its row's loss and
  // gradients NaN.
  const bool inside = 0 <= target && target < p.vocabulary;
  float weight = inside ? 1.0f : NAN;
  if (p.weights.data) {
    weight *= p.weights.is_float ? load_global<Use::kRepeated>(static_cast<const float*>(p.weights.data) + n)
                                 : float(load_global<Use::kRepeated>(static_cast<const input_t*>(p.weights.data) + n));
  }
  const float x_target = inside ? float(load_global<Use::kRepeated>(row.row + target)) : 0.0f;

  const SoftmaxStats<input_t> all = reduce_over_cta(row.stats(smoothed), scratch);
  const float lse = all.row_max + logf(all.row_sum);
  if (threadIdx.x == 0) {
    const float mean = all.logit_sum / p.vocabulary;
    const float loss = lse - (1.0f - p.label_smoothing) * x_target - p.label_smoothing * mean + p.z_loss * lse * lse;
    store_global(p.losses + n, weight * loss);
    store_global(p.lse + n, lse);
  }
  if (!row.gradient) return;

  // The gradient is w * (softmax * (1 + 2 * z * lse) - (1 - e) * onehot - e / V), and 0 in the padding, with weight w,
  // z_loss z and label_smoothing e.
  const float factor = weight * (1.0f + 2.0f * p.z_loss * lse) / all.row_sum;
  const float onehot = weight * (1.0f - p.label_smoothing), uniform = weight * p.label_smoothing / p.vocabulary;
  const int last = (row.vectors - 1 - static_cast<int>(threadIdx.x)) / kThreads;  // index of this thread's last vector
  for (int i = static_cast<int>(threadIdx.x) < row.vectors ? last : -1; i >= 0; i--) {
    const int v = threadIdx.x + i * kThreads;
    float x[Row::kVecSize];
    row.load(v, x);
#pragma unroll
    for (int j = 0; j < Row::kVecSize; j++) x[j] = exp_logit<input_t>(x[j] - all.row_max) * factor;
    const int64_t at = target - row.column(v);
    const int columns = p.vocabulary - row.column(v);
    if (smoothed || (0 <= at && at < Row::kVecSize) || columns < Row::kVecSize) {
#pragma unroll
      for (int j = 0; j < Row::kVecSize; j++) {
        x[j] = j < columns ? x[j] - uniform - (j == at ? onehot : 0.0f) : 0.0f;
      }
    }
    row.store(v, x);
  }
}

template <typename input_t, bool kPadded>
void launch_rows(const Params<input_t>& p, int64_t n, Stream stream) {
  const size_t bytes =
      p.padded * sizeof(input_t) + (kPadded ? 0 : 2 * sizeof(uint4));  // a part of a vector at each end
  if (bytes + kStaticSharedBytes <= max_shared_memory()) {
    launch(rows_kernel<input_t, true, kPadded>, grid_dim(n, 1), kThreads, bytes, stream, p);
  } else {
    launch(rows_kernel<input_t, false, kPadded>, grid_dim(n, 1), kThreads, 0, stream, p);
  }
}

}  // namespace

void cross_entropy_rows(const Array& logits, const Array& dlogits, const Array& targets, const Array& row_weights,
                        const Array& losses, const Array& lse, int64_t vocabulary, int64_t ignore_index,
                        float label_smoothing, float z_loss, Stream stream) {
  check(logits.rank == 2, "logits must have shape (n, padded), got ", logits.rank, " dimensions");
  const int64_t n = logits.shape[0], padded = logits.shape[1];
  logits.expect("logits", logits.dtype, {n, padded});
  if (dlogits) dlogits.expect("dlogits", logits.dtype, {n, padded});
  targets.expect("targets", DType::kInt64, {n});
  losses.expect("losses", DType::kFloat32, {n});
  lse.expect("lse", DType::kFloat32, {n});
  check(0 < vocabulary && vocabulary <= padded, "vocabulary must be from 1 to ", padded, ", got ", vocabulary);
  check(padded < 1 << 30, "logits must have less than 2^30 columns, got ", padded);
  check(aligned16({logits, dlogits}), "logits and dlogits must be aligned to 16 bytes");
  with_input_type(logits.dtype, [&](auto type) {
    using input_t = typename decltype(type)::type;
    const Params<input_t> p{.logits = logits.as<input_t>(),
                            .dlogits = dlogits ? dlogits.as<input_t>() : nullptr,
                            .targets = targets.as<int64_t>(),
                            .weights = parameter("row_weights", row_weights, logits.dtype, n),
                            .losses = losses.as<float>(),
                            .lse = lse.as<float>(),
                            .vocabulary = static_cast<int>(vocabulary),
                            .padded = static_cast<int>(padded),
                            .ignore_index = ignore_index,
                            .label_smoothing = label_smoothing,
                            .z_loss = z_loss};
    padded * sizeof(input_t) % 16 == 0 ? launch_rows<input_t, true>(p, n, stream)
                                       : launch_rows<input_t, false>(p, n, stream);
  });
}

}  // namespace fastlm
