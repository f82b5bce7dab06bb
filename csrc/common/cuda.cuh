// CUDA's language and half-precision types, or the emulator's versions of them. Kernels include this file instead of
// CUDA's headers. Inline PTX is allowed only in common/ptx/.
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

// Returns the CTA's dynamic shared memory, aligned to 128 bytes under nvcc.
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
