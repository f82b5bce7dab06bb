// Launchers of GELU(x + bias).
#pragma once

#include "common/array.h"

namespace fastlm {

// Computes y = GELU(x + bias), (N, F). `tanh` selects the tanh form, otherwise erf.
void bias_gelu_forward(const Array& x, const Array& bias, const Array& y, bool tanh, Stream stream);

// Computes dx (N, F) and dbias (F,) float32. partials (1, num_partials, F) float32 is workspace.
void bias_gelu_backward(const Array& dy, const Array& x, const Array& bias, const Array& dx, const Array& dbias,
                        bool tanh, const Array& partials, Stream stream);

}  // namespace fastlm
