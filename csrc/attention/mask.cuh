// Which attention probabilities are kept, by the accumulators of mma: the bits of fastlm/dropout.py.
//
// Of a 16 x 16 tile, call (r, c) serves queries {2r, 2r+1, 2r+8, 2r+9} and the same pattern of keys. An accumulator's
// lane (g, t) has lines g and g + 8 and columns 2t, 2t+1, 2t+8 and 2t+9: half a call, whose other half is that of the
// lane of the neighbouring line, g ^ 1. So of four tiles each of the two lanes draws two calls, both halves of each,
// and they swap: 32 bits a lane, for its 32 elements. Of what is written here an element takes 28 / 16 instructions of
// Philox, 16 / 32 of comparing two calls at once and 3 / 32 of the exchange. In machine code for sm_90a, by the
// difference between the loops with dropout and without, drawing, applying and all: 4.7 in the forward, 6.0 in each of
// the backward's, where p and dp are masked in float32.
#pragma once

#include "attention/params.h"
#include "common/philox.cuh"
#include "common/ptx.cuh"
#include "common/vec.cuh"

namespace fastlm::attention {

constexpr uint32_t kDomain = 1;  // the counter's last word

// How far a tile lies from another.
struct Step {
  int queries, keys;
};

// kTransposed: an accumulator's lines are keys and its columns queries, else the other way round.
template <bool kTransposed>
class Mask {
 public:
  // head = b * H + h of the call's own sequences. Without dropout there is no seed, and no use for the mask.
  __device__ __forceinline__ Mask(const Problem& p, uint32_t head) : keep_(p.keep) {
    const uint64_t global_head = load_or_zero(p.first_sequence) * p.H + head;
    key_ = key_of(load_or_zero(p.seed), global_head);
    head_ = static_cast<uint32_t>(global_head);
  }

  // Of four tiles, 0 at (query, key), 1 and 3 a step `odd` from 0 and 2, 2 and 3 a step `upper` from 0 and 1, all
  // multiples of 16. If not kUpper, of the first two.
  template <bool kUpper>
  __device__ __forceinline__ uint32_t bits(int query, int key, Step odd, Step upper,
                                           unsigned thread = threadIdx.x) const {
    const int lane = thread % kWarpSize, line = lane / 4 / 2, column = lane % 4;
    const bool second = lane / 4 % 2 != 0;  // draws tiles 1 and 3
    const uint32_t c0 = key / 4 + (kTransposed ? line : column) + (second ? odd.keys / 4 : 0);
    const uint32_t c1 = query / 4 + (kTransposed ? column : line) + (second ? odd.queries / 4 : 0);
    const uint4 a = philox(key_, c0, c1, head_, kDomain);
    const uint4 b = kUpper ? philox(key_, c0 + upper.keys / 4, c1 + upper.queries / 4, head_, kDomain) : a;
    uint32_t below = 0;
    compare(below, a.x, b.x, 0);
    compare(below, a.y, b.y, 2);
    compare(below, a.z, b.z, 4);
    compare(below, a.w, b.w, 6);
    // Lane (g, t)'s share of a call are the bits of its line; the neighbour's, of tiles 1 and 3, go between them.
    constexpr unsigned kShift = kTransposed ? 1 : 4, kFirst = kTransposed ? 0x55555555 : 0x0f0f0f0f;
    const uint32_t other = __shfl_xor_sync(kAllLanes, below, 4);
    const uint32_t moved = __funnelshift_l(other, other, second ? 32 - kShift : kShift);
    const uint32_t own = second ? ~kFirst : kFirst;
    return (below & own) | (moved & ~own);
  }

  // The bit, of those that bits() returns, of an element: line g + 8 * line8, column 2t + 8 * column8 + column1.
  __host__ __device__ static constexpr int place(int tile, int line8, int column8, int column1) {
    return 16 * (tile / 2) + (kTransposed ? 8 * column8 + 4 * column1 + 2 * line8 + tile % 2
                                          : 8 * line8 + 4 * (tile % 2) + 2 * column8 + column1);
  }

 private:
  // From the lowest plane up: below = the number so far is less than keep's = keep's bit ? ~x | below : ~x & below, for
  // planes p and p + 1 in the halves of the words of two calls.
  __device__ __forceinline__ void compare(uint32_t& below, uint32_t a, uint32_t b, int p) const {
    below = majority(~permute_bytes(a, b, 0x5410), below, 0u - (keep_ >> p & 1));
    below = majority(~permute_bytes(a, b, 0x7632), below, 0u - (keep_ >> (p + 1) & 1));
  }
  __device__ __forceinline__ static uint32_t majority(uint32_t x, uint32_t y, uint32_t z) {
    return (x & y) | (y & z) | (x & z);
  }

  uint64_t key_;
  uint32_t keep_, head_;
};

// Ones in the halves of a word whose elements are kept, by bits `place` and place + 1 of one byte.
__device__ __forceinline__ uint32_t kept_halves(uint32_t bits, int place) {
  const int byte = place / 8, bit = place % 8;
  const uint32_t low = 8 + byte, high = 12 + byte;  // copies of the top bits of that byte of the two
  return permute_bytes(bits << (7 - bit), bits << (6 - bit), low | low << 4 | high << 8 | high << 12);
}

}  // namespace fastlm::attention
