// The last step of gradients that are sums over rows (common/partials.cuh).
//
// 12PE bytes, which the kernel before left in the L2 cache, with P four a multiprocessor: 4.9 MB for E = 768 on an
// H100.
#include <array>

#include "common/partials.cuh"

namespace fastlm {

namespace {

struct Sums {
  const float* partials;  // (3, P, E)
  float* out[kMostSums];  // (E,) each, or null
  int P, E;
};

// A block of 32 columns by as many slices of the programs as it has warps.
__global__ void __launch_bounds__(kWarpSize* kWarpSize) sum_kernel(const Sums p) {
  __shared__ float slices[kWarpSize][kWarpSize];
  float* const out = p.out[blockIdx.y];
  if (out == nullptr) return;
  const int lane = threadIdx.x % kWarpSize, slice = threadIdx.x / kWarpSize, count = blockDim.x / kWarpSize;
  const int column = blockIdx.x * kWarpSize + lane;
  float sum = 0.0f;
  if (column < p.E) {
    const float* from = p.partials + static_cast<int64_t>(blockIdx.y) * p.P * p.E + column;
#pragma unroll 4
    for (int i = slice; i < p.P; i += count) sum += load_global(from + static_cast<int64_t>(i) * p.E);
  }
  slices[slice][lane] = sum;
  __syncthreads();
  if (slice != 0 || column >= p.E) return;
  for (int i = 1; i < count; i++) sum += slices[i][lane];
  store_global(out + column, sum);
}

}  // namespace

void sum_partials(const Array& partials, const Array& out0, const Array& out1, const Array& out2, Stream stream) {
  check(partials.rank == 3 && partials.shape[0] == kMostSums, "partials must have shape (3, programs, E)");
  const int64_t P = partials.shape[1], E = partials.shape[2];
  partials.expect("partials", DType::kFloat32, {kMostSums, P, E});
  Sums p{partials.as<float>(), {}, static_cast<int>(P), static_cast<int>(E)};
  for (int i = 0; i < kMostSums; i++) {
    const Array& out = *std::array{&out0, &out1, &out2}[i];
    if (out) out.expect("a sum of partials", DType::kFloat32, {E});
    p.out[i] = out.as<float>();
  }
  const int slices = static_cast<int>(P < kWarpSize ? P : kWarpSize);
  launch(sum_kernel, dim3(blocks(E, kWarpSize), kMostSums), slices * kWarpSize, 0, stream, p);
}

}  // namespace fastlm
