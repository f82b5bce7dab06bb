// Softmax cross-entropy of rows of logits: the part of linear_cross_entropy between its matrix products.
#pragma once

#include "common/array.h"

namespace fastlm {

// Computes losses and lse (n,) float32 from logits (n, padded). If need_gradient, overwrites the logits with their
// gradients. targets are (n,) int64; row_weights are (n,) float32 or of the logits' dtype, or None. Columns from
// `vocabulary` on are padding: they are ignored and their gradients are 0. `padded` is a multiple of 64.
void cross_entropy_rows(const Array& logits, const Array& targets, const Array& row_weights, const Array& losses,
                        const Array& lse, int64_t vocabulary, int64_t ignore_index, float label_smoothing, float z_loss,
                        bool need_gradient, Stream stream);

}  // namespace fastlm
