// AdamW over all parameters of a model: the gradients' norm, then the update.
#pragma once

#include <vector>

#include "common/array.h"

namespace fastlm {

// partials (launches, P) float32: sums of squares of the gradients, which are float32, float16 or bfloat16. A launch
// takes up to 420 tensors.
void adamw_norm(const std::vector<Array>& gradients, const Array& partials, Stream stream);

// norm (1,) float32 = scale * the root of the sum of partials. With g = gradient * scale * min(1, max_norm / norm):
//   m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
//   p = (1 - lr decay) p - lr / correction1 * m / (sqrt(v / correction2) + eps).
// Parameters and gradients share a dtype each, moments are float32; rates, decays and corrections have an entry per
// parameter.
void adamw_update(const std::vector<Array>& parameters, const std::vector<Array>& gradients,
                  const std::vector<Array>& first_moments, const std::vector<Array>& second_moments,
                  const std::vector<float>& rates, const std::vector<float>& decays,
                  const std::vector<float>& corrections1, const std::vector<float>& corrections2, const Array& partials,
                  const Array& norm, float scale, float max_norm, float beta1, float beta2, float eps, Stream stream);

}  // namespace fastlm
