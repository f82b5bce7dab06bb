// Softmax cross-entropy of rows of logits: cross_entropy, and linear_cross_entropy between its matrix products.
#pragma once

#include "common/array.h"

namespace fastlm {

// Computes losses and lse (n,) float32 from logits (n, padded), and their gradients into dlogits, which may be the
// logits, or None. targets are (n,) int64; row_weights are (n,) float32 or of the logits' dtype, or None. Columns from
// `vocabulary` on are padding: they are ignored and their gradients are 0. logits and dlogits start at 16 bytes.
void cross_entropy_rows(const Array& logits, const Array& dlogits, const Array& targets, const Array& row_weights,
                        const Array& losses, const Array& lse, int64_t vocabulary, int64_t ignore_index,
                        float label_smoothing, float z_loss, Stream stream);

}  // namespace fastlm
