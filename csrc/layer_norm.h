// Launchers of layer_norm.cu; the same names and arguments as in kernels/layer_norm.py, and the stream.
#pragma once

#include "common/array.h"

namespace fastlm {

// y = LN(sum), sum = residual + dropout(x + bias), all (N, E) of one dtype; mean and rstd (N,) float32. bias, gamma and
// beta (E,) are of that dtype or float32; bias, beta, seed and first_row (1,) int64 and sum may be None. E is at most
// 8192.
void add_layer_norm_forward(const Array& x, const Array& residual, const Array& bias, const Array& gamma,
                            const Array& beta, const Array& seed, const Array& first_row, const Array& y,
                            const Array& sum, const Array& mean, const Array& rstd, int keep, float eps, Stream stream);

// ds (N, E) of the residual and dx = dropout(ds), None without dropout; dgamma, dbeta and dbias (E,) float32, of which
// the latter two may be None, by way of partials (3, programs, E) float32, or (2, ...) without dbias. dsum may be None.
void add_layer_norm_backward(const Array& dy, const Array& dsum, const Array& sum, const Array& mean, const Array& rstd,
                             const Array& gamma, const Array& seed, const Array& first_row, const Array& ds,
                             const Array& dx, const Array& dgamma, const Array& dbeta, const Array& dbias, int keep,
                             const Array& partials, Stream stream);

// add_layer_norm_backward that reads the output y (N, E) where there is no sum; no gamma may be 0.
void add_layer_norm_backward_from_output(const Array& dy, const Array& y, const Array& rstd, const Array& gamma,
                                         const Array& beta, const Array& seed, const Array& first_row, const Array& ds,
                                         const Array& dx, const Array& dgamma, const Array& dbeta, const Array& dbias,
                                         int keep, const Array& partials, Stream stream);

// y = LN(x), both (N, E); mean and rstd (N,) float32.
void layer_norm_forward(const Array& x, const Array& gamma, const Array& beta, const Array& y, const Array& mean,
                        const Array& rstd, float eps, Stream stream);

// dx (N, E); dgamma, dbeta (E,) float32 by way of partials (2, programs, E).
void layer_norm_backward(const Array& dy, const Array& x, const Array& mean, const Array& rstd, const Array& gamma,
                         const Array& dx, const Array& dgamma, const Array& dbeta, const Array& partials,
                         Stream stream);

}  // namespace fastlm
