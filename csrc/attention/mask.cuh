// The dropout mask of attention probabilities, in the layout of mma accumulators. The bits are those of
// fastlm/dropout.py.
//
// In a 16 x 16 tile one Philox call (r, c) serves queries {2r, 2r+1, 2r+8, 2r+9} and keys {2c, 2c+1, 2c+8, 2c+9}. The
// picture shows the call of each element as the number 4r + c:
//
//   key         0  1  2  3  4  5  6  7    8  9 10 11 12 13 14 15
//   query  0    0  0  1  1  2  2  3  3 |  0  0  1  1  2  2  3  3
//   query  1    0  0  1  1  2  2  3  3 |  0  0  1  1  2  2  3  3
//   query  2    4  4  5  5  6  6  7  7 |  4  4  5  5  6  6  7  7
//   query  3    4  4  5  5  6  6  7  7 |  4  4  5  5  6  6  7  7
//   query  4    8  8  9  9 10 10 11 11 |  8  8  9  9 10 10 11 11
//   query  5    8  8  9  9 10 10 11 11 |  8  8  9  9 10 10 11 11
//   query  6   12 12 13 13 14 14 15 15 | 12 12 13 13 14 14 15 15
//   query  7   12 12 13 13 14 14 15 15 | 12 12 13 13 14 14 15 15
//              ------------------------+------------------------
//   query  8    0  0  1  1  2  2  3  3 |  0  0  1  1  2  2  3  3
//   query  9    0  0  1  1  2  2  3  3 |  0  0  1  1  2  2  3  3
//   query 10    4  4  5  5  6  6  7  7 |  4  4  5  5  6  6  7  7
//   query 11    4  4  5  5  6  6  7  7 |  4  4  5  5  6  6  7  7
//   query 12    8  8  9  9 10 10 11 11 |  8  8  9  9 10 10 11 11
//   query 13    8  8  9  9 10 10 11 11 |  8  8  9  9 10 10 11 11
//   query 14   12 12 13 13 14 14 15 15 | 12 12 13 13 14 14 15 15
//   query 15   12 12 13 13 14 14 15 15 | 12 12 13 13 14 14 15 15
//
// Lane (g, t) = lane 4g + t holds rows g and g + 8 and columns 2t, 2t+1, 2t+8 and 2t+9 of the tile (ptx/mma.cuh): half
// of one call. Lane (g ^ 1, t) holds the other half. For four tiles, each of these two lanes makes two calls and sends
// the other lane its half of them. Each lane then has 32 bits for its 32 elements:
//
//   lane     calls           keeps the bits of its rows in   receives the bits of its rows in
//   g even   tiles 0 and 2   tiles 0 and 2                   tiles 1 and 3
//   g odd    tiles 1 and 3   tiles 1 and 3                   tiles 0 and 2
//
// Instructions per element in this file: Philox 28 / 16, comparison (two calls at once) 16 / 32, swap 3 / 32. In
// machine code for sm_90a the loops with dropout have, per element, 4.7 more instructions than those without in the
// forward and 6.0 more in each loop of the backward, where p and dp are masked in float32.
#pragma once

#include "attention/params.h"
#include "common/philox.cuh"
#include "common/ptx/math.cuh"
#include "common/vec.cuh"

namespace fastlm::attention {

constexpr uint32_t kAttentionDomain = 1;  // the counter's last word, which is 0 for row ops

// The distance from one tile to another, in queries and keys.
struct Step {
  int queries, keys;
};

// kTransposed: the rows of the accumulators are keys and the columns queries, as in s^T. Otherwise rows are queries.
template <bool kTransposed>
class DropoutMask {
 public:
  // `head` is b * H + h, with b counted within the call. Without dropout p.seed is null and the mask must not be used.
  __device__ __forceinline__ DropoutMask(const Problem& p, uint32_t head) : keep_(p.keep) {
    const uint64_t global_head = load_or_zero(p.first_sequence) * p.H + head;
    key_ = philox_key(load_or_zero(p.seed), global_head);
    head_ = static_cast<uint32_t>(global_head);
  }

  // Returns this lane's bits for four tiles, or for tiles 0 and 1 if not kUpper; bit_index() says where they are. Tile
  // 0 begins at (query, key). All positions and steps are multiples of 16.
  //
  //   tile 0   --odd-->   tile 1
  //    | upper             | upper
  //   tile 2   --odd-->   tile 3
  template <bool kUpper>
  __device__ __forceinline__ uint32_t bits(int query, int key, Step odd, Step upper,
                                           unsigned thread = threadIdx.x) const {
    const int lane = thread % kWarpSize, row = lane / 4 / 2, column = lane % 4;
    const bool odd_row = lane / 4 % 2 != 0;  // then this lane makes the calls of tiles 1 and 3
    const uint32_t c0 = key / 4 + (kTransposed ? row : column) + (odd_row ? odd.keys / 4 : 0);
    const uint32_t c1 = query / 4 + (kTransposed ? column : row) + (odd_row ? odd.queries / 4 : 0);
    const uint4 a = philox(key_, c0, c1, head_, kAttentionDomain);
    const uint4 b = kUpper ? philox(key_, c0 + upper.keys / 4, c1 + upper.queries / 4, head_, kAttentionDomain) : a;
    uint32_t below = 0;
    compare(below, a.x, b.x, 0);
    compare(below, a.y, b.y, 2);
    compare(below, a.z, b.z, 4);
    compare(below, a.w, b.w, 6);
    // Keep the bits of this lane's rows, and move the bits received from lane (g ^ 1, t) into the gaps between them.
    constexpr unsigned kShift = kTransposed ? 1 : 4, kEvenBits = kTransposed ? 0x55555555 : 0x0f0f0f0f;
    const uint32_t neighbour = __shfl_xor_sync(kAllLanes, below, 4);
    const uint32_t moved = __funnelshift_l(neighbour, neighbour, odd_row ? 32 - kShift : kShift);
    const uint32_t own = odd_row ? ~kEvenBits : kEvenBits;
    return (below & own) | (moved & ~own);
  }

  // Returns the index, in the word that bits() returns, of row g + 8 * row8 and column 2t + 8 * column8 + column1.
  __host__ __device__ static constexpr int bit_index(int tile, int row8, int column8, int column1) {
    return 16 * (tile / 2) + (kTransposed ? 8 * column8 + 4 * column1 + 2 * row8 + tile % 2
                                          : 8 * row8 + 4 * (tile % 2) + 2 * column8 + column1);
  }

 private:
  // Compares the elements' 8-bit numbers with keep, one bit plane at a time, from the lowest plane up. For a plane x,
  // `below` becomes ~x | below if keep's bit is 1, else ~x & below. The words a and b of two calls hold planes p and p
  // + 1 in their halves.
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

// Returns a mask for a register of two packed elements: 0xffff in the half of each kept element. Their bits are
// `bit_index` and bit_index + 1, in one byte.
__device__ __forceinline__ uint32_t kept_halves(uint32_t bits, int bit_index) {
  const int byte = bit_index / 8, bit = bit_index % 8;
  const uint32_t low = 8 + byte, high = 12 + byte;  // selectors of eight copies of the byte's top bit, in each word
  return permute_bytes(bits << (7 - bit), bits << (6 - bit), low | low << 4 | high << 8 | high << 12);
}

}  // namespace fastlm::attention
