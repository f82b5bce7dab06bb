// The dropout masks of fastlm/dropout.py: Philox-4x32 with 7 rounds, the same bits.
#pragma once

#include "common/array.h"
#include "common/cuda.cuh"
#include "common/vec.cuh"

namespace fastlm {

constexpr int kLevels = 256;  // a keep count of 256 drops nothing

// What a launcher with dropout checks: a seed and a keep count that go together, and where the call's part of the batch
// begins, or None for 0.
inline void check_dropout(const Array& seed, const char* what, const Array& first, int keep) {
  check(0 < keep && keep <= kLevels, "keep must be from 1 to 256, got ", keep);
  check(bool(seed) == (keep < kLevels), "there must be a seed where keep is less than 256, and only there");
  if (seed) seed.expect("seed", DType::kInt64, {1});
  if (first) first.expect(what, DType::kInt64, {1});
}

// The 128 bits of one call, of a key (the seed) and a counter.
__device__ __forceinline__ uint4 philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 7; round++) {
    // Whole products: one IMAD.WIDE each.
    const uint64_t product0 = static_cast<uint64_t>(c0) * 0xD2511F53u;
    const uint64_t product1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return uint4{c0, c1, c2, c3};
}

// A seed, or the global number of a call's first row or sequence: (1,), or null for 0.
__device__ __forceinline__ uint64_t load_or_zero(const int64_t* value) {
  return value ? load_global<Use::kRepeated>(value) : 0;
}

// The key of a row's or head's calls, of which the counter holds the number mod 2^32.
__device__ __forceinline__ uint64_t key_of(uint64_t seed, uint64_t number) { return seed ^ (number >> 32 << 32); }

// Row ops: which of the 8 columns from `column` on, a multiple of 8, of a global row are kept. Column c has byte c % 16
// of the call with counter (c / 16, row mod 2^32, 0, 0), and is kept if the byte is less than `keep`.
class RowMask {
 public:
  __device__ __forceinline__ RowMask(uint64_t seed, uint64_t row, int column) {
    const uint4 call = philox(key_of(seed, row), column / 16, static_cast<uint32_t>(row), 0, 0);
    const bool second = column % 16 != 0;
    low_ = second ? call.z : call.x;
    high_ = second ? call.w : call.y;
  }

  // x * scale where column i of the 8 is kept, else 0. The byte is compared at the top of its word, where those below
  // make no difference, and `keep` is less than 256.
  __device__ __forceinline__ float apply(int i, float x, uint32_t keep, float scale) const {
    return (i < 4 ? low_ : high_) << (24 - 8 * (i % 4)) < keep << 24 ? x * scale : 0.0f;
  }

 private:
  uint32_t low_, high_;
};

}  // namespace fastlm
