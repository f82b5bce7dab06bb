// Dropout masks with the bits of fastlm/dropout.py: Philox-4x32 with 7 rounds.
#pragma once

#include "common/array.h"
#include "common/cuda.cuh"
#include "common/vec.cuh"

namespace fastlm {

constexpr int kKeepLevels = 256;  // keep = 256 drops nothing

// Checks the dropout arguments of a launcher: keep is from 1 to 256, and a seed is given if and only if keep < 256.
// `first` is the global index of the call's first row or sequence, or None for 0; errors call it `what`.
inline void check_dropout(const Array& seed, const char* what, const Array& first, int keep) {
  check(0 < keep && keep <= kKeepLevels, "keep must be from 1 to 256, got ", keep);
  check(bool(seed) == (keep < kKeepLevels), "there must be a seed where keep is less than 256, and only there");
  if (seed) seed.expect("seed", DType::kInt64, {1});
  if (first) first.expect(what, DType::kInt64, {1});
}

// Returns the 128 bits of one Philox call, for the key `seed` and the counter (c0, c1, c2, c3).
__device__ __forceinline__ uint4 philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 7; round++) {
    // A 64-bit product is one IMAD.WIDE instruction.
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

// Returns *value, a seed or the global index of a call's first row or sequence, or 0 if it is null.
__device__ __forceinline__ uint64_t load_or_zero(const int64_t* value) {
  return value ? load_global<Use::kRepeated>(value) : 0;
}

// Returns the key for the global index of a row or head. The counter holds index mod 2^32; the upper half of the index
// is XORed onto the seed.
__device__ __forceinline__ uint64_t philox_key(uint64_t seed, uint64_t index) { return seed ^ (index >> 32 << 32); }

// The dropout mask of row ops, for 8 columns of a global row that begin at `column`, a multiple of 8. Column c uses
// byte c % 16 of the Philox call with counter (c / 16, row mod 2^32, 0, 0), low byte of a word first, and is kept if
// that byte is less than `keep`. Two neighbouring lanes make the same call and use half of it each:
//
//   c % 16       0-3   4-7   8-11   12-15
//   word         x     y     z      w
//   lane % 2     0     0     1      1
class RowMask {
 public:
  __device__ __forceinline__ RowMask(uint64_t seed, uint64_t row, int column) {
    const uint4 call = philox(philox_key(seed, row), column / 16, static_cast<uint32_t>(row), 0, 0);
    const bool second = column % 16 != 0;
    low_ = second ? call.z : call.x;
    high_ = second ? call.w : call.y;
  }

  // Returns x * scale if column i of the 8 is kept, else 0. The shift puts the byte at the top of its word. The lower
  // bytes cannot change the comparison, because the lower bytes of keep << 24 are 0. `keep` is less than 256.
  __device__ __forceinline__ float apply(int i, float x, uint32_t keep, float scale) const {
    return (i < 4 ? low_ : high_) << (24 - 8 * (i % 4)) < keep << 24 ? x * scale : 0.0f;
  }

 private:
  uint32_t low_, high_;
};

}  // namespace fastlm
