// Adds up the partial sums of gradients (common/partials.cuh).
//
// Reads 4PE bytes per gradient, which the previous kernel left in the L2. With four CTAs per SM in that kernel (P =
// 528), these are 1.6 MB for E = 768 on an H100.
#include <array>

#include "common/partials.cuh"

namespace fastlm {

namespace {

struct Sums {
  const float* partials;  // (sums, P, E)
  float* out[kMaxSums];   // (E,) each, or null
  int P, E;
};

// A CTA adds up 32 columns. Its warps divide the P partial sums.
__global__ void __launch_bounds__(kWarpSize* kWarpSize) sum_kernel(const Sums p) {
  __shared__ float slices[kWarpSize][kWarpSize];
  float* const out = blockIdx.y == 0   ? p.out[0]
                     : blockIdx.y == 1 ? p.out[1]
                                       : p.out[2];  // indexing by blockIdx.y would copy the array to local memory
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
  const int64_t sums = partials.shape[0], P = partials.shape[1], E = partials.shape[2];
  check(partials.rank == 3 && 1 <= sums && sums <= kMaxSums, "partials must have shape (1 to 3, num_partials, E)");
  check_partials(partials, sums, E);
  Sums p{.partials = partials.as<float>(), .out = {}, .P = static_cast<int>(P), .E = static_cast<int>(E)};
  for (int i = 0; i < kMaxSums; i++) {
    const Array& out = *std::array{&out0, &out1, &out2}[i];
    if (out) out.expect("a sum of partials", DType::kFloat32, {E});
    p.out[i] = out.as<float>();
  }
  const int slices = static_cast<int>(P < kWarpSize ? P : kWarpSize);
  launch(sum_kernel, dim3(grid_dim(E, kWarpSize), static_cast<unsigned>(sums)), slices * kWarpSize, 0, stream, p);
}

}  // namespace fastlm
