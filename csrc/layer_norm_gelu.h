// Launchers of GELU(LN(x)).
#pragma once

#include "common/array.h"

namespace fastlm {

// Computes y = GELU(LN(x)), (N, E), and mean and rstd (N,) float32.
void layer_norm_gelu_forward(const Array& x, const Array& gamma, const Array& beta, const Array& y, const Array& mean,
                             const Array& rstd, bool tanh, float eps, Stream stream);

// Computes dx (N, E), and dgamma and dbeta (E,) float32. partials (2, num_partials, E) float32 is workspace.
void layer_norm_gelu_backward(const Array& dy, const Array& x, const Array& mean, const Array& rstd, const Array& gamma,
                              const Array& beta, const Array& dx, const Array& dgamma, const Array& dbeta, bool tanh,
                              const Array& partials, Stream stream);

}  // namespace fastlm
