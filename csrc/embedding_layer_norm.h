// dropout(LN(We[tokens] + Wp[positions] + Ws[segments])): launchers.
#pragma once

#include "common/array.h"

namespace fastlm {

// y = dropout(LN(sum)), sum = word[tokens] + position[position_ids] + segment[segments], both (N, E) of one dtype. Ids
// are (N,) int64; tables (rows, E), gamma and beta (E,) of that dtype or float32; mean and rstd (N,) float32. Row n
// takes position n % sequence where position_ids is None. seed and first_row are (1,) int64, or None. Without gamma
// there is no layer norm: sum, mean and rstd are None. E is at most 8192.
void embedding_layer_norm_forward(const Array& tokens, const Array& word, const Array& position,
                                  const Array& position_ids, const Array& segment, const Array& segments,
                                  const Array& gamma, const Array& beta, const Array& seed, const Array& first_row,
                                  const Array& y, const Array& sum, const Array& mean, const Array& rstd,
                                  int64_t sequence, int keep, float eps, Stream stream);

// ds (N, E) of the tables' sum; dgamma, dbeta (E,) float32 by way of partials (2, programs, E) float32. Without gamma
// there is dropout alone, and dy, seed, first_row and ds are all that is given.
void embedding_layer_norm_backward(const Array& dy, const Array& sum, const Array& mean, const Array& rstd,
                                   const Array& gamma, const Array& seed, const Array& first_row, const Array& ds,
                                   const Array& dgamma, const Array& dbeta, int keep, const Array& partials,
                                   Stream stream);

// out[v] (E,) float32 = the sum of ds (N, E) over the places where v is. ids (N,) int32 are sorted, order (N,) int64
// are the places that they came from, starts (V + 1,) int64 where each row's begin in ids; runs (N / run, E) float32 is
// room for sums over runs of `run` places.
void embedding_gradient(const Array& ds, const Array& ids, const Array& order, const Array& starts, const Array& runs,
                        const Array& out, int64_t run, Stream stream);

}  // namespace fastlm
