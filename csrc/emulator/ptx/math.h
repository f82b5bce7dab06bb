// Twins of the instructions in common/ptx/math.cuh.
#pragma once

#include <cmath>
#include <cstdint>

namespace fastlm {

inline uint32_t opaque(uint32_t x) { return x; }

inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t all = static_cast<uint64_t>(b) << 32 | a;
  uint32_t bytes = 0;
  for (int n = 0; n < 4; n++) {
    const unsigned digit = selector >> 4 * n & 0xf, byte = all >> 8 * (digit & 7) & 0xff;
    bytes |= (digit < 8 ? byte : byte >> 7 == 0 ? 0 : 0xff) << 8 * n;
  }
  return bytes;
}

inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}

}  // namespace fastlm
