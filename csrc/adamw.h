// AdamW over all parameters of a model: the sum of the gradients' squares, then the update.
#pragma once

#include <vector>

#include "common/array.h"

namespace fastlm {

// Computes partial sums of the squares of all gradients, one per CTA, in squares (K,) float32. Gradients are float32,
// float16 or bfloat16. One launch takes up to 480 tensors; K must be a multiple of the number of launches.
void gradient_squares(const std::vector<Array>& gradients, const Array& squares, Stream stream);

// Updates parameters and moments, and sets norm () to scale * sqrt(sum of squares (K,)). With
// g = gradient * scale * min(1, max_norm / norm):
//   m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
//   p = (1 - rate decay) p - rate / c1 * m / (sqrt(v / c2) + eps).
// A parameter and its gradient share a dtype; everything else is float32: the moments, rates and decays (n,),
// corrections (n, 2), which hold c1 and c2, max_norm () and scale (). corrections, max_norm or scale may be None: no
// bias correction, no clipping, a scale of 1. The update runs with `num_ctas` CTAs.
void adamw(const std::vector<Array>& parameters, const std::vector<Array>& gradients,
           const std::vector<Array>& first_moments, const std::vector<Array>& second_moments, const Array& rates,
           const Array& decays, const Array& corrections, const Array& squares, const Array& max_norm,
           const Array& scale, const Array& norm, double beta1, double beta2, float eps, int num_ctas, Stream stream);

}  // namespace fastlm
