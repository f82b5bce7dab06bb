// Tests the emulator against CUDA's documentation: each expected result is computed here in another way.
#include <cmath>

#include "arrays.h"
#include "common/launch.cuh"
#include "common/ptx/barrier.cuh"
#include "common/ptx/copy.cuh"
#include "common/ptx/mma.cuh"
#include "common/reduce.cuh"

namespace fastlm {

namespace {

// Tests half precision: converts every value to float, compared with ldexp, and rounds the floats next to the middle of
// every two neighbouring values.
template <typename T>
void conversions(int mantissa_bits, int bias) {
  const auto value = [&](int raw) {
    const int exponent = raw >> mantissa_bits, fraction = raw & ((1 << mantissa_bits) - 1);
    const int significand = exponent == 0 ? fraction : fraction + (1 << mantissa_bits);
    return std::ldexp(float(significand), (exponent == 0 ? 1 : exponent) - bias - mantissa_bits);
  };
  const auto raw = [](float x) { return T(x).raw; };
  const int infinity = 0x7fff >> mantissa_bits << mantissa_bits;
  for (int i = 0; i < infinity; i++) {
    T x;
    x.raw = i;
    EXPECT(float(x) == value(i));
    x.raw = i | 0x8000;
    EXPECT(float(x) == -value(i));
    const float low = value(i), high = i + 1 == infinity ? std::ldexp(1.0f, bias + 1) : value(i + 1);
    const float middle = low + (high - low) / 2;
    if (std::isinf(middle) || middle == low)
      continue;  // no float lies between the two largest bfloat16 values, or between the two smallest
    EXPECT(raw(low) == i && raw(-low) == (i | 0x8000));
    EXPECT(raw(std::nextafter(middle, low)) == i);
    EXPECT(raw(std::nextafter(middle, high)) == i + 1);
    EXPECT(raw(middle) == i + i % 2);
  }
  EXPECT(raw(INFINITY) == infinity && raw(-INFINITY) == (infinity | 0x8000));
  EXPECT(std::isnan(float(T(NAN))));
}

__global__ void shuffles(int* out) {
  const int lane = threadIdx.x;
  int* const mine = out + 6 * lane;
  mine[0] = __shfl_sync(kAllLanes, lane, lane + 5);
  mine[1] = __shfl_up_sync(kAllLanes, lane, 3u, 8);
  mine[2] = __shfl_down_sync(kAllLanes, lane, 3u, 8);
  mine[3] = __shfl_xor_sync(kAllLanes, lane, 9);
  mine[4] = __ballot_sync(kAllLanes, lane % 3 == 0);
  mine[5] = __any_sync(kAllLanes, lane == 31) + 2 * __all_sync(kAllLanes, lane < 31) + 4 * int(warp_sum(lane));
}

void test_shuffles() {
  HeapArray<int> out{32, 6};
  launch(shuffles, dim3(1), 32, 0, 0, &out[0]);
  for (int lane = 0; lane < 32; lane++) {
    const int at = lane % 8;
    const int expected[] = {(lane + 5) % 32, at < 3 ? lane : lane - 3,     at > 4 ? lane : lane + 3,
                            lane ^ 9,        static_cast<int>(0x49249249), 1 + 4 * 496};
    for (int i = 0; i < 6; i++) EXPECT(out[6 * lane + i] == expected[i]);
  }
}

// Computes c = 1 + a b by ldmatrix and mma, for a (16, 16) and b, stored as (16, 8) or transposed as (8, 16).
template <typename T, bool kTransposedB>
__global__ void product(const T* a, const T* b, float* c) {
  alignas(16) __shared__ T shared_a[16][16];
  alignas(16) __shared__ T shared_b[16 * 8];
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) shared_a[i / 16][i % 16] = a[i];
  for (int i = lane; i < 128; i += 32) shared_b[i] = b[i];
  __syncthreads();
  uint32_t ra[4], rb[2];
  ldmatrix(ra, &shared_a[lane % 16][lane / 16 * 8]);
  if (kTransposedB) {
    ldmatrix(rb, &shared_b[lane % 8 * 16 + lane / 8 % 2 * 8]);
  } else {
    ldmatrix_trans(rb, &shared_b[lane % 16 * 8]);
  }
  float d[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  mma_m16n8k16<T>(d, ra, rb);
  const int g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

template <typename T, bool kTransposedB>
void test_product() {
  HeapArray<T> a{16, 16}, b{16, 8};
  HeapArray<float> c{16, 8};
  a.fill_normal(1), b.fill_normal(2);
  launch(product<T, kTransposedB>, dim3(1), 32, 0, 0, &a[0], &b[0], &c[0]);
  for (int i = 0; i < 16; i++) {
    for (int j = 0; j < 8; j++) {
      double sum = 1.0;
      for (int k = 0; k < 16; k++)
        sum += double(float(a[16 * i + k])) * float(b[kTransposedB ? 16 * j + k : 8 * k + j]);
      EXPECT(std::abs(c[8 * i + j] - sum) < 1e-5);
    }
  }
}

// Tests ldmatrix with 1, 2 and 4 matrices against the layout in its documentation.
template <int kMatrices>
__global__ void matrices(uint32_t* out) {
  alignas(16) __shared__ uint16_t rows[32][8];
  const int lane = threadIdx.x;
  for (int i = 0; i < 8; i++) rows[lane][i] = 100 * lane + i;
  __syncthreads();
  uint32_t r[kMatrices], transposed[kMatrices];
  ldmatrix(r, rows[lane]);
  ldmatrix_trans(transposed, rows[lane]);
  for (int m = 0; m < kMatrices; m++) out[2 * (kMatrices * lane + m)] = r[m];
  for (int m = 0; m < kMatrices; m++) out[2 * (kMatrices * lane + m) + 1] = transposed[m];
}

template <int kMatrices>
void test_matrices() {
  HeapArray<int> out{32, kMatrices, 2};
  launch(matrices<kMatrices>, dim3(1), 32, 0, 0, reinterpret_cast<uint32_t*>(&out[0]));
  for (int lane = 0; lane < 32; lane++) {
    const int g = lane / 4, t = lane % 4;
    for (int m = 0; m < kMatrices; m++) {
      const auto at = [&](int row, int column) { return 100 * (8 * m + row) + column; };
      const int index = 2 * (kMatrices * lane + m);
      EXPECT(out[index] == (at(g, 2 * t) | at(g, 2 * t + 1) << 16));
      EXPECT(out[index + 1] == (at(2 * t, g) | at(2 * t + 1, g) << 16));
    }
  }
}

// One warp fills two stages that the other warps read. Named barriers 1 and 2 signal "full", 3 and 4 "empty".
__global__ void pipeline(const float* from, float* to, int rounds) {
  float* const stages = dynamic_shared<float>();
  const int lane = threadIdx.x % 32, threads = blockDim.x, readers = threads - 32;
  if (threadIdx.x < 32) {
    for (int i = 0; i < rounds; i++) {
      if (i >= 2) barrier_sync(3 + i % 2, threads);
      cp_async(stages + i % 2 * 128 + 4 * lane, from + 128 * i + 4 * lane, true);
      cp_async_commit();
      cp_async_wait<0>();
      barrier_arrive(1 + i % 2, threads);
    }
  } else {
    for (int i = 0; i < rounds; i++) {
      barrier_sync(1 + i % 2, threads);
      for (int j = threadIdx.x - 32; j < 128; j += readers) to[128 * i + j] = 2 * stages[i % 2 * 128 + j];
      if (i + 2 < rounds) barrier_arrive(3 + i % 2, threads);
    }
  }
}

void test_pipeline() {
  constexpr int kRounds = 5;
  HeapArray<float> from{kRounds, 128}, to{kRounds, 128};
  from.fill_normal(1);
  launch(pipeline, dim3(1), 96, 2 * 128 * sizeof(float), 0, &from[0], &to[0], kRounds);
  for (int i = 0; i < from.count(); i++) EXPECT(to[i] == 2 * from[i]);
}

// A copy with valid = false writes zeros, even if its address is null.
__global__ void copy_part(const float* from, float* to, int valid) {
  alignas(16) __shared__ float values[128];
  const int lane = threadIdx.x;
  cp_async(values + 4 * lane, lane < valid ? from + 4 * lane : nullptr, lane < valid);
  cp_async_commit();
  cp_async_wait<0>();
  for (int i = 0; i < 4; i++) to[4 * lane + i] = values[4 * lane + i];
}

void test_partial_copy() {
  HeapArray<float> from{28}, to{128};
  from.fill_normal(1);
  launch(copy_part, dim3(1), 32, 0, 0, &from[0], &to[0], 7);
  for (int i = 0; i < 128; i++) EXPECT(to[i] == (i < 28 ? from[i] : 0.0f));
}

// Barriers do not wait for threads that have returned. Indices have three dimensions.
__global__ void some_return(int* out) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  if (threadIdx.x >= 40) return;
  __syncthreads();
  out[40 * block + threadIdx.x] = 1000 * block + threadIdx.x;
}

void test_indices() {
  HeapArray<int> out{24, 40};
  launch(some_return, dim3(2, 3, 4), 64, 0, 0, &out[0]);
  for (int i = 0; i < out.count(); i++) EXPECT(out[i] == 1000 * (i / 40) + i % 40);
}

}  // namespace
}  // namespace fastlm

int main() {
  using namespace fastlm;
  conversions<half_t>(10, 15);
  conversions<bf16_t>(7, 127);
  test_shuffles();
  test_product<bf16_t, false>();
  test_product<bf16_t, true>();
  test_product<half_t, false>();
  test_product<half_t, true>();
  test_matrices<1>();
  test_matrices<2>();
  test_matrices<4>();
  test_pipeline();
  test_partial_copy();
  test_indices();
}
