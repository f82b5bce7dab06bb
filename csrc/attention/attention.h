// Launchers of attention. Names and arguments are those in kernels/attention.py, plus the stream.
#pragma once

#include "common/array.h"

namespace fastlm {

// Computes o = dropout(softmax(scale q k^T + mask)) v, and each row's log-sum-exp.
//
//   argument        padded batch           packed rows    dtype
//   q, k, v, o      (B, S, H, D)           (T, H, D)      float16 or bfloat16
//   lse             (B, H, S)              (T, H)         float32
//   lengths         (B,), or None: all S   None           int32
//   starts          (B,), or None: all 0   None           int32
//   cu_seqlens      None                   (B + 1,)       int32
//   max_seqlen      S                      at least the longest sequence
//   seed            (1,), or None: no dropout             int64
//   first_sequence  (1,), or None: 0                      int64
//
// Sequence b of a padded batch has rows starts[b] to starts[b] + lengths[b] - 1; starts need lengths. Positions, in the
// causal mask and in dropout, are counted from the sequence's first row.
// D is a multiple of 8 up to 128. q, k, v and o are aligned to 16 bytes; their last stride is 1 and the others are
// multiples of 8.
void attention_forward(const Array& q, const Array& k, const Array& v, const Array& lengths, const Array& starts,
                       const Array& cu_seqlens, int max_seqlen, const Array& seed, const Array& first_sequence,
                       const Array& o, const Array& lse, bool causal, float scale, int keep, Stream stream);

// Computes dq, dk and dv, which have q's shape. scratch is (2, *lse.shape) float32.
void attention_backward(const Array& dout, const Array& q, const Array& k, const Array& v, const Array& o,
                        const Array& lse, const Array& lengths, const Array& starts, const Array& cu_seqlens,
                        int max_seqlen, const Array& seed, const Array& first_sequence, const Array& dq,
                        const Array& dk, const Array& dv, const Array& scratch, bool causal, float scale, int keep,
                        Stream stream);

}  // namespace fastlm
