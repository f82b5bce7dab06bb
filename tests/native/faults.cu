// Kernels with one mistake each, and the same kernels without it. `faults <name> sound` must succeed. `faults <name>
// faulty` must be caught by a sanitizer, by the emulator, or by its wrong result.
#include <cstring>
#include <map>
#include <string>

#include "arrays.h"
#include "common/launch.cuh"
#include "common/ptx/barrier.cuh"
#include "common/ptx/copy.cuh"
#include "common/vec.cuh"

namespace fastlm {

namespace {

constexpr int kThreads = 64;

template <bool kFaulty>
__global__ void read_past_end(const float* from, float* to) {
  const int i = threadIdx.x;
  store_global(to + i, load_global(from + (kFaulty ? i + 1 : i)));
}

template <bool kFaulty>
__global__ void write_past_end(const float* from, float* to) {
  const int i = threadIdx.x;
  if (kFaulty || i > 0) store_global(to + kThreads - i, load_global(from + i));
}

template <bool kFaulty>
__global__ void write_past_static_shared(const float* from, float* to) {
  __shared__ float values[kThreads];
  const int i = threadIdx.x;
  values[kFaulty ? i + 1 : i] = from[i];
  __syncthreads();
  to[i] = values[kThreads - 1 - i];
}

template <bool kFaulty>
__global__ void write_past_dynamic_shared(const float* from, float* to) {
  float* const values = dynamic_shared<float>();
  const int i = threadIdx.x;
  values[kFaulty ? i + 1 : i] = from[i];
  __syncthreads();
  to[i] = values[kThreads - 1 - i];
}

template <bool kFaulty>
__global__ void missing_barrier(const float* from, float* to) {
  __shared__ float values[kThreads];
  const int i = threadIdx.x;
  values[i] = from[i];
  if (!kFaulty) __syncthreads();
  to[i] = values[kThreads - 1 - i];
}

// The first barrier orders writes before reads. Without the second, the next round's writes may come before these
// reads.
template <bool kFaulty>
__global__ void missing_second_barrier(const float* from, float* to) {
  __shared__ float values[kThreads];
  const int i = threadIdx.x;
  for (int round = 0; round < 3; round++) {
    values[i] = from[i] + round;
    __syncthreads();
    to[i] = values[kThreads - 1 - i];
    if (!kFaulty) __syncthreads();
  }
}

template <bool kFaulty>
__global__ void missing_warp_barrier(const float* from, float* to) {
  __shared__ float values[kThreads];
  const int i = threadIdx.x;
  values[i] = from[i];
  if (!kFaulty) __syncwarp();
  to[i] = values[i ^ 1];
}

// A shuffle exchanges values but does not order memory accesses.
template <bool kFaulty>
__global__ void shuffle_for_a_barrier(const float* from, float* to) {
  __shared__ float values[kThreads];
  const int i = threadIdx.x;
  values[i] = from[i];
  if (!kFaulty) __syncwarp();
  to[i] = __shfl_xor_sync(kAllLanes, from[i], 1) + values[i ^ 1];
}

template <bool kFaulty>
__global__ void missing_wait(const float* from, float* to) {
  alignas(16) __shared__ float values[kThreads];
  const int i = threadIdx.x;
  if (i < kThreads / 4) cp_async(values + 4 * i, from + 4 * i, true);
  cp_async_commit();
  if (!kFaulty) cp_async_wait<0>();
  __syncthreads();
  to[i] = values[i];
  if (kFaulty) cp_async_wait<0>();
}

// Two groups of copies are pending and the first is needed, so at most one may still be pending.
template <bool kFaulty>
__global__ void wait_for_too_few(const float* from, float* to) {
  alignas(16) __shared__ float values[2][kThreads];
  const int i = threadIdx.x;
  for (int stage = 0; stage < 2; stage++) {
    if (i < kThreads / 4) cp_async(values[stage] + 4 * i, from + 4 * i, true);
    cp_async_commit();
  }
  cp_async_wait<kFaulty ? 2 : 1>();
  __syncthreads();
  to[i] = values[0][i];
  cp_async_wait<0>();
}

template <bool kFaulty>
__global__ void never_waits(const float* from, float* to) {
  alignas(16) __shared__ float values[kThreads];
  const int i = threadIdx.x;
  to[i] = from[i];
  if (i < kThreads / 4) cp_async(values + 4 * i, from + 4 * i, true);
  cp_async_commit();
  if (!kFaulty) cp_async_wait<0>();
}

// A wait makes a thread's copies visible to that thread only; other threads need a barrier.
template <bool kFaulty>
__global__ void missing_barrier_after_wait(const float* from, float* to) {
  alignas(16) __shared__ float values[kThreads];
  const int i = threadIdx.x;
  if (i < kThreads / 4) cp_async(values + 4 * i, from + 4 * i, true);
  cp_async_commit();
  cp_async_wait<0>();
  if (!kFaulty) __syncthreads();
  to[i] = values[i];
}

template <bool kFaulty>
__global__ void mask_of_lanes_elsewhere(const float* from, float* to) {
  const int i = threadIdx.x;
  float x = from[i];
  if (i % 32 < 16) x += __shfl_xor_sync(kFaulty ? kAllLanes : 0xffff, x, 1);
  to[i] = x;
}

template <bool kFaulty>
__global__ void mask_without_the_caller(const float* from, float* to) {
  const int i = threadIdx.x;
  to[i] = __shfl_xor_sync(kFaulty ? 0xffff : kAllLanes, from[i], 1);
}

template <bool kFaulty>
__global__ void shuffle_from_outside_the_mask(const float* from, float* to) {
  const int i = threadIdx.x;
  to[i] = __shfl_xor_sync(i % 32 < 16 ? 0xffff : 0xffff0000, from[i], kFaulty ? 16 : 1);
}

template <bool kFaulty>
__global__ void barrier_count(const float* from, float* to) {
  const int i = threadIdx.x;
  if (i < 32) {
    barrier_arrive(1, kFaulty ? 96 : 64);
  } else {
    barrier_sync(1, kFaulty ? 96 : 64);
  }
  to[i] = from[i];
}

using Kernel = void (*)(const float*, float*);

template <bool kFaulty>
const std::map<std::string, Kernel>& kernels() {
  static const std::map<std::string, Kernel> all = {
      {"read_past_end", read_past_end<kFaulty>},
      {"write_past_end", write_past_end<kFaulty>},
      {"write_past_static_shared", write_past_static_shared<kFaulty>},
      {"write_past_dynamic_shared", write_past_dynamic_shared<kFaulty>},
      {"missing_barrier", missing_barrier<kFaulty>},
      {"missing_second_barrier", missing_second_barrier<kFaulty>},
      {"missing_warp_barrier", missing_warp_barrier<kFaulty>},
      {"shuffle_for_a_barrier", shuffle_for_a_barrier<kFaulty>},
      {"missing_wait", missing_wait<kFaulty>},
      {"wait_for_too_few", wait_for_too_few<kFaulty>},
      {"never_waits", never_waits<kFaulty>},
      {"missing_barrier_after_wait", missing_barrier_after_wait<kFaulty>},
      {"mask_of_lanes_elsewhere", mask_of_lanes_elsewhere<kFaulty>},
      {"mask_without_the_caller", mask_without_the_caller<kFaulty>},
      {"shuffle_from_outside_the_mask", shuffle_from_outside_the_mask<kFaulty>},
      {"barrier_count", barrier_count<kFaulty>},
  };
  return all;
}

int run(const std::string& name, bool faulty) {
  HeapArray<float> from{kThreads}, to{kThreads};
  from.fill_normal(1);
  try {
    launch((faulty ? kernels<true>() : kernels<false>()).at(name), dim3(2), kThreads, kThreads * sizeof(float), 0,
           &from[0], &to[0]);
  } catch (const std::runtime_error& error) {
    std::fprintf(stderr, "the emulator: %s\n", error.what());
    return 2;
  }
  if (to.finite()) return 0;
  std::fprintf(stderr, "the result is not finite\n");
  return 3;
}

}  // namespace
}  // namespace fastlm

int main(int count, char** arguments) {
  if (count != 3) return 64;
  return fastlm::run(arguments[1], std::strcmp(arguments[2], "faulty") == 0);
}
