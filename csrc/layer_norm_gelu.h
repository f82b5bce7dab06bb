// GELU(LN(x)): launchers.
#pragma once

#include "common/array.h"

namespace fastlm {

// y = GELU(LN(x)), (N, E); mean and rstd (N,) float32.
void layer_norm_gelu_forward(const Array& x, const Array& gamma, const Array& beta, const Array& y, const Array& mean,
                             const Array& rstd, bool tanh, float eps, Stream stream);

// dx (N, E); dgamma, dbeta (E,) float32 by way of partials (2, programs, E).
void layer_norm_gelu_backward(const Array& dy, const Array& x, const Array& mean, const Array& rstd, const Array& gamma,
                              const Array& beta, const Array& dx, const Array& dgamma, const Array& dbeta, bool tanh,
                              const Array& partials, Stream stream);

}  // namespace fastlm
