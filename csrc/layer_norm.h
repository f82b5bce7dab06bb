// Launchers of layer_norm.cu. Names and arguments are those in kernels/layer_norm.py, plus the stream.
#pragma once

#include "common/array.h"

namespace fastlm {

// Computes y = LN(sum) with sum = residual + dropout(x + bias), all (N, E) of one dtype, and mean and rstd (N,)
// float32. bias, gamma and beta (E,) have that dtype or float32; seed and first_row are (1,) int64. residual, bias,
// beta, seed, first_row and sum may be None. E is at most 8192.
void add_layer_norm_forward(const Array& x, const Array& residual, const Array& bias, const Array& gamma,
                            const Array& beta, const Array& seed, const Array& first_row, const Array& y,
                            const Array& sum, const Array& mean, const Array& rstd, int keep, float eps, Stream stream);

// Computes ds (N, E), the residual's gradient, and dx = dropout(ds), which is None without dropout; and dgamma, dbeta
// and dbias (E,) float32. dsum, dbeta and dbias may be None. partials (3, num_partials, E) float32, or (2, ...) without
// dbias, is workspace.
void add_layer_norm_backward(const Array& dy, const Array& dsum, const Array& sum, const Array& mean, const Array& rstd,
                             const Array& gamma, const Array& seed, const Array& first_row, const Array& ds,
                             const Array& dx, const Array& dgamma, const Array& dbeta, const Array& dbias, int keep,
                             const Array& partials, Stream stream);

// Computes the same from the output y (N, E), for a forward that did not store the sum. No element of gamma may be 0.
void add_layer_norm_backward_from_output(const Array& dy, const Array& y, const Array& rstd, const Array& gamma,
                                         const Array& beta, const Array& seed, const Array& first_row, const Array& ds,
                                         const Array& dx, const Array& dgamma, const Array& dbeta, const Array& dbias,
                                         int keep, const Array& partials, Stream stream);

// Computes y = LN(x), both (N, E), and mean and rstd (N,) float32.
void layer_norm_forward(const Array& x, const Array& gamma, const Array& beta, const Array& y, const Array& mean,
                        const Array& rstd, float eps, Stream stream);

// Computes dx (N, E), and dgamma and dbeta (E,) float32. partials (2, num_partials, E) float32 is workspace.
void layer_norm_backward(const Array& dy, const Array& x, const Array& mean, const Array& rstd, const Array& gamma,
                         const Array& dx, const Array& dgamma, const Array& dbeta, const Array& partials,
                         Stream stream);

}  // namespace fastlm
