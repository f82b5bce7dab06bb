// Launchers of layer_norm.cu; the same names and arguments as in kernels/layer_norm.py, and the stream.
#pragma once

#include "common/array.h"

namespace fastlm {

// y = LN(sum), sum = residual + dropout(x + bias), all (N, E) of one dtype; mean and rstd (N,) float32. bias, gamma and
// beta (E,) are of that dtype or float32; bias, beta, seed (1,) int64 and sum may be None. E is at most 8192.
void add_layer_norm_forward(const Array& x, const Array& residual, const Array& bias, const Array& gamma,
                            const Array& beta, const Array& seed, const Array& y, const Array& sum, const Array& mean,
                            const Array& rstd, int keep, float eps, Stream stream);

}  // namespace fastlm
