// AdamW over all parameters of a model: the sum of the gradients' squares, then the update.
#pragma once

#include <vector>

#include "common/array.h"

namespace fastlm {

// squares (K,) float32: partial sums, a CTA each, of the squares of all gradients, which are float32, float16 or
// bfloat16. A launch takes up to 480 tensors; K is a multiple of the launches.
void gradient_squares(const std::vector<Array>& gradients, const Array& squares, Stream stream);

// norm () = scale * the root of the sum of squares (K,). With g = gradient * scale * min(1, max_norm / norm):
//   m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
//   p = (1 - rate decay) p - rate / c1 * m / (sqrt(v / c2) + eps).
// Each parameter and its gradient share a dtype; all else is float32: moments, rates and decays (n,), corrections
// (n, 2) with c1 and c2, max_norm () and scale (). None stands for no bias correction, no clipping and a scale of 1.
// The update's grid has `num_ctas` CTAs.
void adamw(const std::vector<Array>& parameters, const std::vector<Array>& gradients,
           const std::vector<Array>& first_moments, const std::vector<Array>& second_moments, const Array& rates,
           const Array& decays, const Array& corrections, const Array& squares, const Array& max_norm,
           const Array& scale, const Array& norm, double beta1, double beta2, float eps, int num_ctas, Stream stream);

}  // namespace fastlm
