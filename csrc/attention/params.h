// What the kernels of attention are given. B sequences, S rows each of padded batches, T rows in all of packed ones, H
// heads, D the head's dimension.
#pragma once

#include "common/vec.cuh"

namespace fastlm::attention {

constexpr float kLog2E = 1.4426950408889634f;
constexpr int kChunk = 8;          // elements of 16 bytes
constexpr int kLargestHead = 128;  // D, a multiple of kChunk

// (B, S, H, D), or (T, H, D) with a sequence stride of 0: of rows i and head h of sequence b, which starts at packed
// row `start` (0 if padded), data + b * sequence + (start + i) * row + h * head. Strides in elements.
template <typename T>
struct View {
  T* data;
  int64_t sequence, row, head;

  __device__ __forceinline__ int64_t offset(int b, int h, int start) const {
    return b * sequence + start * row + h * head;
  }
  __device__ __forceinline__ View at(int b, int h, int start) const {
    return {data + offset(b, h, start), sequence, row, head};
  }
  __device__ __forceinline__ T* operator[](int i) const { return data + i * row; }
};

struct Problem {
  const int* lengths;  // (B,), or null
  const int* starts;   // (B + 1,) of packed rows, or null
  int longest;         // S, or the longest packed sequence
  int total;           // T of packed rows
  int H, D;
  bool causal;
  float scale;
  const int64_t* seed;            // (1,), or null without dropout
  const int64_t* first_sequence;  // (1,), or null for 0
  uint32_t keep;                  // of 256
};

// A sequence: the packed row where it starts, its length, and how many rows it has in the outputs. No host looks at
// lengths and starts on a GPU: what is out of range is taken as the nearest that is not, so that no access is outside
// of the arrays. Packed rows that are no sequence's are not written.
struct Sequence {
  int start, length, rows;

  __device__ __forceinline__ Sequence(const Problem& p, int b) : start(0), length(p.longest), rows(p.longest) {
    if (p.starts) {
      start = clamp(load_global<Use::kRepeated>(p.starts + b), p.total);
      const int end = clamp(load_global<Use::kRepeated>(p.starts + b + 1), p.total);
      rows = length = clamp(end - start, p.longest);
    } else if (p.lengths) {
      length = clamp(load_global<Use::kRepeated>(p.lengths + b), p.longest);
    }
  }
  __device__ __forceinline__ static int clamp(int x, int most) { return max(0, min(x, most)); }
};

template <typename input_t>
struct Forward {
  Problem problem;
  View<const input_t> q, k, v;
  View<input_t> o;
  View<float> lse;  // (B, H, S), or (T, H), natural logarithms; +inf in rows past a length
};

// With z the keep mask times 256 / keep: dv = (z p)^T do, ds = p (z (do v^T) - delta), dq = scale ds k,
// dk = scale ds^T q, where p = exp(scale q k^T - lse) and delta = rowsum(do o).
template <typename input_t>
struct Backward {
  Problem problem;
  View<const input_t> q, k, v, o, dout;
  View<const float> lse;
  float* delta;  // as lse, times keep / 256: what the pass over queries leaves to that over keys
  View<input_t> dq, dk, dv;
};

}  // namespace fastlm::attention
