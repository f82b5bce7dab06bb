// GELU(x + bias): launchers.
#pragma once

#include "common/array.h"

namespace fastlm {

// y = GELU(x + bias), (N, F).
void bias_gelu_forward(const Array& x, const Array& bias, const Array& y, bool tanh, Stream stream);

// dx (N, F); dbias (F,) float32 by way of partials (1, programs, F).
void bias_gelu_backward(const Array& dy, const Array& x, const Array& bias, const Array& dx, const Array& dbias,
                        bool tanh, const Array& partials, Stream stream);

}  // namespace fastlm
