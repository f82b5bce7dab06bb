// PTX for arithmetic within one thread. emulator/ptx/math.h has a twin of each function.
#pragma once

#include "common/cuda.cuh"

#if defined(FASTLM_EMULATOR)
#include "emulator/ptx/math.h"
#else

namespace fastlm {

// Returns x, hidden from the optimizer, so that nothing derived from it is hoisted out of a loop. Use it for values
// that are cheaper to compute again than to keep in registers.
__device__ __forceinline__ uint32_t opaque(uint32_t x) {
  uint32_t y;
  asm volatile("mov.b32 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// Returns four of the eight bytes of a (bytes 0-3) and b (bytes 4-7). The n-th hexadecimal digit of `selector` chooses
// byte n of the result: a digit d of 0-7 chooses byte d, and 8-15 gives eight copies of the top bit of byte d - 8.
__device__ __forceinline__ uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(a), "r"(b), "r"(selector));
  return bytes;
}

// Returns 2^x to within 2 units in the last place. Subnormal results are 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace fastlm

#endif
