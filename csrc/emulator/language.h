// The parts of CUDA's language and library that the kernels use, for a C++ compiler. One OS thread runs everything, so
// shared memory can be plain static storage, whose bounds AddressSanitizer checks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct alignas(8) uint2 {
  unsigned x, y;
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

using std::max;
using std::min;

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdividef(float x, float y) { return x / y; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  return (static_cast<uint64_t>(high) << 32 | low) << (by & 31) >> 32;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<uint64_t>(a) * b >> 32; }

namespace fastlm::emulator {

template <typename To, typename From>
To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace fastlm::emulator

inline float __uint_as_float(unsigned x) { return fastlm::emulator::bits<float>(x); }
inline unsigned __float_as_uint(float x) { return fastlm::emulator::bits<unsigned>(x); }

// Conversions round to nearest, ties to even, like the hardware's.
struct __nv_bfloat16 {
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float x) {
    const unsigned b = __float_as_uint(x);
    raw = x != x ? 0x7fff : (b + 0x7fff + (b >> 16 & 1)) >> 16;
  }
  operator float() const { return __uint_as_float(static_cast<unsigned>(raw) << 16); }

  uint16_t raw;
};

struct __half {
  __half() = default;
  explicit __half(float x) {
    const unsigned b = __float_as_uint(x);
    raw = (b >> 16 & 0x8000) | rounded(b & 0x7fffffff);
  }
  operator float() const {
    // A half's exponent, in the position of a float's, is too small by 112. The exponent of infinities and NaN is set
    // to the float's.
    const float magnitude = __uint_as_float((raw & 0x7fffu) << 13) * 0x1p112f;
    const unsigned special = (raw & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;
    return __uint_as_float(__float_as_uint(magnitude) | special | (raw & 0x8000u) << 16);
  }

  uint16_t raw;

 private:
  static unsigned rounded(unsigned magnitude) {
    if (magnitude > 0x7f800000) return 0x7fff;
    if (magnitude >= 0x477ff000) return 0x7c00;  // from 65520 on
    // Halves below 2^-14 are multiples of 2^-24, and so are floats from 1/2 to 1. Adding 1/2 to a float therefore
    // rounds it to a half.
    if (magnitude < 0x38800000) return __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000;
    return (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
};

inline __half __ushort_as_half(uint16_t raw) {
  __half x;
  x.raw = raw;
  return x;
}

// Warp-wide functions and barriers ------------------------------------------------------------------------------

void __syncthreads();
void __syncwarp(unsigned mask = 0xffffffff);
void __trap();
unsigned __ballot_sync(unsigned mask, int predicate);
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

namespace fastlm::emulator {

enum class Shuffle { kIndex, kUp, kDown, kXor };
uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t value, unsigned by, int width);

template <typename T>
T shuffle_value(Shuffle kind, unsigned mask, T value, unsigned by, int width) {
  static_assert(sizeof(T) <= 8, "shuffles move 32 or 64 bits");
  uint64_t raw = 0;
  std::memcpy(&raw, &value, sizeof value);
  raw = shuffle(kind, mask, raw, by, width);
  std::memcpy(&value, &raw, sizeof value);
  return value;
}

}  // namespace fastlm::emulator

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return fastlm::emulator::shuffle_value(fastlm::emulator::Shuffle::kIndex, mask, value, lane, width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  return fastlm::emulator::shuffle_value(fastlm::emulator::Shuffle::kUp, mask, value, by, width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  return fastlm::emulator::shuffle_value(fastlm::emulator::Shuffle::kDown, mask, value, by, width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32) {
  return fastlm::emulator::shuffle_value(fastlm::emulator::Shuffle::kXor, mask, value, by, width);
}
