// Launchers of LN(GELU(x + bias)).
#pragma once

#include "common/array.h"

namespace fastlm {

// Computes y = LN(GELU(x + bias)), (N, E), and mean and rstd (N,) float32.
void gelu_layer_norm_forward(const Array& x, const Array& bias, const Array& gamma, const Array& beta, const Array& y,
                             const Array& mean, const Array& rstd, bool tanh, float eps, Stream stream);

// Computes dx (N, E), and dgamma, dbeta and dbias (E,) float32. partials (3, num_partials, E) float32 is workspace.
void gelu_layer_norm_backward(const Array& dy, const Array& x, const Array& bias, const Array& mean, const Array& rstd,
                              const Array& gamma, const Array& dx, const Array& dgamma, const Array& dbeta,
                              const Array& dbias, bool tanh, const Array& partials, Stream stream);

}  // namespace fastlm
