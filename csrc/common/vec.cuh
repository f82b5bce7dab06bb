// Accesses to global memory, and values packed into 32-bit registers. Kernels access global memory only through these
// functions and cp_async (ptx/copy.cuh), so that the emulator can count the bytes that they move.
#pragma once

#include <type_traits>

#include "common/array.h"
#include "common/cuda.cuh"

namespace fastlm {

// How often a kernel reads the bytes of an operand. The emulator counts the two kinds separately.
enum class Use {
  kOnce,     // the bytes come from HBM
  kRepeated  // small operands that many CTAs read: the bytes come from a cache
};

template <Use kUse = Use::kOnce, typename T>
__device__ __forceinline__ T load_global(const T* from) {
#if defined(FASTLM_EMULATOR)
  kUse == Use::kOnce ? emulator::count_read(sizeof(T)) : emulator::count_cached(sizeof(T));
#endif
  return *from;
}

template <typename T>
__device__ __forceinline__ void store_global(T* to, const T& value) {
#if defined(FASTLM_EMULATOR)
  emulator::count_written(sizeof(T));
#endif
  *to = value;
}

// Packs two values into a register, the first in the low half.
template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  static_assert(sizeof(T) == 2);
#if defined(FASTLM_EMULATOR)
  return T(low).raw | static_cast<uint32_t>(T(high).raw) << 16;
#else
  if constexpr (std::is_same_v<T, half_t>) {
    const __half2 both = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(both);
  } else {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const uint32_t&>(both);
  }
#endif
}

// Returns the value in the low (0) or high (1) half of a register.
template <typename T>
__device__ __forceinline__ float unpack(uint32_t word, int half) {
  if constexpr (std::is_same_v<T, bf16_t>) {
    return __uint_as_float(half == 0 ? word << 16 : word & 0xffff0000u);
  } else {
    return float(__ushort_as_half(static_cast<uint16_t>(word >> 16 * half)));
  }
}

// kN values of type T, packed as in memory. A value is converted to float when it is read.
template <typename T, int kN>
struct Vec {
  static constexpr int kPerWord = 4 / sizeof(T);
  static constexpr int kWords = kN / kPerWord;
  static_assert(kWords % 4 == 0, "a vector is one or more accesses of 16 bytes");

  uint32_t words[kWords];

  __device__ __forceinline__ float operator[](int i) const {
    if constexpr (kPerWord == 1) {
      return __uint_as_float(words[i]);
    } else {
      return unpack<T>(words[i / 2], i % 2);
    }
  }

  __device__ __forceinline__ void copy_to(float (&values)[kN]) const {
#pragma unroll
    for (int i = 0; i < kN; i++) values[i] = (*this)[i];
  }

  // Returns the values, rounded to T.
  __device__ __forceinline__ static Vec of(const float (&values)[kN]) {
    Vec vec;
#pragma unroll
    for (int i = 0; i < kWords; i++) {
      if constexpr (kPerWord == 1) {
        vec.words[i] = __float_as_uint(values[i]);
      } else {
        vec.words[i] = pack<T>(values[2 * i], values[2 * i + 1]);
      }
    }
    return vec;
  }
};

// Returns whether all arrays are aligned to 16 bytes. None counts as aligned.
inline bool aligned16(std::initializer_list<Array> arrays) {
  for (const Array& array : arrays) {
    if (reinterpret_cast<std::uintptr_t>(array.data) % 16 != 0) return false;
  }
  return true;
}

// Loads the first `count` of the kN values at `from`, and zeros for the rest. With kWide it loads all kN values if
// count > 0, by accesses of 16 bytes; `from` must then be aligned to 16 bytes. Otherwise it reads the values one by
// one.
template <int kN, bool kWide, Use kUse = Use::kOnce, typename T>
__device__ __forceinline__ Vec<T, kN> load_vec(const T* from, int count) {
  Vec<T, kN> vec;
  if constexpr (kWide) {
#pragma unroll
    for (int i = 0; i < vec.kWords; i += 4) {
      const uint4 part =
          count > 0 ? load_global<kUse>(reinterpret_cast<const uint4*>(from) + i / 4) : uint4{0, 0, 0, 0};
      vec.words[i] = part.x, vec.words[i + 1] = part.y, vec.words[i + 2] = part.z, vec.words[i + 3] = part.w;
    }
  } else {
    constexpr int kPerWord = Vec<T, kN>::kPerWord, kBits = 32 / kPerWord;
#pragma unroll
    for (int i = 0; i < kN; i++) {
      const T value = i < count ? load_global<kUse>(from + i) : T(0.0f);
      const uint32_t bits = reinterpret_cast<const std::conditional_t<kPerWord == 1, uint32_t, uint16_t>&>(value);
      vec.words[i / kPerWord] = i % kPerWord == 0 ? bits : vec.words[i / kPerWord] | bits << kBits % 32;
    }
  }
  return vec;
}

// Stores the first `count` values of a vector, in the same two ways as load_vec.
template <int kN, bool kWide, typename T>
__device__ __forceinline__ void store_vec(T* to, const Vec<T, kN>& vec, int count) {
  if constexpr (kWide) {
    if (count <= 0) return;
#pragma unroll
    for (int i = 0; i < vec.kWords; i += 4) {
      store_global(reinterpret_cast<uint4*>(to) + i / 4,
                   uint4{vec.words[i], vec.words[i + 1], vec.words[i + 2], vec.words[i + 3]});
    }
  } else {
#pragma unroll
    for (int i = 0; i < kN; i++) {
      if (i < count) store_global(to + i, T(vec[i]));
    }
  }
}

}  // namespace fastlm
