// Parameters of the attention kernels. B is the number of sequences, H of heads and D the head dimension. A padded
// batch has S rows per sequence; a packed batch has T rows in all.
#pragma once

#include <type_traits>

#include "common/vec.cuh"

namespace fastlm::attention {

constexpr float kLog2E = 1.4426950408889634f;
constexpr int kVecSize = 8;       // elements in one vector of 16 bytes
constexpr int kMaxHeadDim = 128;  // D is a multiple of kVecSize up to this

// A tensor (B, S, H, D), or (T, H, D) with a batch stride of 0; strides are in elements. Sequence b starts at row
// `start`: a packed row, or one of its own S rows in a padded batch. Its row i of head h begins at
//   data + b * batch_stride + (start + i) * row_stride + h * head_stride.
template <typename T>
struct View {
  T* data;
  int64_t batch_stride, row_stride, head_stride;

  __device__ __forceinline__ int64_t offset(int b, int h, int start) const {
    return b * batch_stride + start * row_stride + h * head_stride;
  }
  __device__ __forceinline__ View at(int b, int h, int start) const {
    return {data + offset(b, h, start), batch_stride, row_stride, head_stride};
  }
  __device__ __forceinline__ T* operator[](int i) const { return data + i * row_stride; }
};

struct Problem {
  const int* lengths;     // (B,), or null
  const int* cu_seqlens;  // (B + 1,) for packed rows, or null
  int max_seqlen;         // S, or the length of the longest packed sequence
  int total_rows;         // T, for packed rows
  int H, D;
  bool causal;
  float scale;
  const int64_t* seed;            // (1,), or null without dropout
  const int64_t* first_sequence;  // (1,), or null for 0
  uint32_t keep;                  // the keep probability times 256
  // (B,) beside `lengths` if there is padding on the left, or null. Last, because kernels without it take up to 11 more
  // registers with other offsets of the fields before it (nvcc 13.0, sm_90a).
  const int* starts;
};

// One sequence: the row where it starts, its length, and its number of rows in the outputs. These include the padding,
// unless there is padding on the left: then store_padding() writes all padding. `lengths`, `starts` and `cu_seqlens`
// are in device memory, so the host cannot check them: values out of range are clamped, so that no access is outside
// the arrays. Packed rows that belong to no sequence are not written.
struct Sequence {
  int start, length, rows;

  // kStarts: whether p.starts is not null. Without it the kernels need fewer registers.
  template <bool kStarts>
  __device__ __forceinline__ Sequence(const Problem& p, int b, std::bool_constant<kStarts>)
      : start(0), length(p.max_seqlen), rows(p.max_seqlen) {
    if constexpr (kStarts) {
      start = clamp(load_global<Use::kRepeated>(p.starts + b), p.max_seqlen);
      rows = length = clamp(load_global<Use::kRepeated>(p.lengths + b), p.max_seqlen - start);
    } else if (p.cu_seqlens) {
      start = clamp(load_global<Use::kRepeated>(p.cu_seqlens + b), p.total_rows);
      const int end = clamp(load_global<Use::kRepeated>(p.cu_seqlens + b + 1), p.total_rows);
      rows = length = clamp(end - start, p.max_seqlen);
    } else if (p.lengths) {
      length = clamp(load_global<Use::kRepeated>(p.lengths + b), p.max_seqlen);
    }
  }
  __device__ __forceinline__ static int clamp(int x, int high) { return max(0, min(x, high)); }
};

template <typename input_t>
struct ForwardParams {
  Problem problem;
  View<const input_t> q, k, v;
  View<input_t> o;
  View<float> lse;  // (B, H, S), or (T, H), natural logarithm; +inf in rows past the sequence's length
};

// The backward computes, with z = keep mask * 256 / keep, p = exp(scale q k^T - lse) and delta = rowsum(do * o):
//   dv = (z p)^T do,  ds = p (z (do v^T) - delta),  dq = scale ds k,  dk = scale ds^T q.
template <typename input_t>
struct BackwardParams {
  Problem problem;
  View<const input_t> q, k, v, o, dout;
  View<const float> lse;
  float* delta;  // in the shape of lse: delta * keep / 256. The dq pass writes it, the dkv pass reads it
  View<input_t> dq, dk, dv;
};

}  // namespace fastlm::attention
