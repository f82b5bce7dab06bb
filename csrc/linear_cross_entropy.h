// Softmax cross-entropy of rows of logits, the part of linear_cross_entropy between its matrix products.
#pragma once

#include "common/array.h"

namespace fastlm {

// losses and lse (n,) float32 of logits (n, padded), which become their gradients if those are needed. Columns from
// `vocabulary` on are padding: they count for nothing, and their gradients are 0. `padded` is a multiple of 64.
void cross_entropy_rows(const Array& logits, const Array& targets, const Array& row_weights, const Array& losses,
                        const Array& lse, int64_t vocabulary, int64_t ignore_index, float label_smoothing, float z_loss,
                        bool need_gradient, Stream stream);

}  // namespace fastlm
