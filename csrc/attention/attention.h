// Launchers; the same names and arguments as in kernels/attention.py, and the stream.
#pragma once

#include "common/array.h"

namespace fastlm {

// o = dropout(softmax(scale q k^T + mask)) v and lse, the logarithms of the rows' sums, float32.
//
// q, k, v and o are (B, S, H, D) with max_seqlen = S, and lse (B, H, S); or with cu_seqlens (B + 1,) int32 packed rows
// (T, H, D) and lse (T, H). float16 or bfloat16; D is a multiple of 8 up to 128; rows of 16-byte chunks, that is bases
// aligned to 16 bytes and strides that are multiples of 8, but for 1 in the last dimension. lengths (B,) int32,
// cu_seqlens, seed and first_sequence (1,) int64 may be None.
void attention_forward(const Array& q, const Array& k, const Array& v, const Array& lengths, const Array& cu_seqlens,
                       int max_seqlen, const Array& seed, const Array& first_sequence, const Array& o, const Array& lse,
                       bool causal, float scale, int keep, Stream stream);

// dq, dk and dv, laid out as q. scratch is (2, *lse.shape) float32.
void attention_backward(const Array& dout, const Array& q, const Array& k, const Array& v, const Array& o,
                        const Array& lse, const Array& lengths, const Array& cu_seqlens, int max_seqlen,
                        const Array& seed, const Array& first_sequence, const Array& dq, const Array& dk,
                        const Array& dv, const Array& scratch, bool causal, float scale, int keep, Stream stream);

}  // namespace fastlm
