// CUDA's language and half-precision types, or the emulator's. Kernels include this and the rest of common/, never
// CUDA's headers, and write inline PTX nowhere but in ptx.cuh.
#pragma once

#if defined(FASTLM_EMULATOR)
#include "emulator/block.h"
#include "emulator/language.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#endif

namespace fastlm {

using half_t = __half;
using bf16_t = __nv_bfloat16;

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffff;

// The block's dynamic shared memory, 128-byte aligned under nvcc.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
#if defined(FASTLM_EMULATOR)
  return static_cast<T*>(emulator::dynamic_shared());
#else
  extern __shared__ __align__(128) unsigned char dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
#endif
}

}  // namespace fastlm
