// Launchers of dropout(LN(We[tokens] + Wp[positions] + Ws[segments])).
#pragma once

#include "common/array.h"

namespace fastlm {

// Computes y = dropout(LN(sum)) with sum = word[tokens] + position[position_ids] + segment[segments], both (N, E) of
// one dtype, and mean and rstd (N,) float32.
//
//   tokens, position_ids, segments   (N,) int64; if position_ids is None, row n takes position n % sequence
//   word, position, segment          (rows, E), of y's dtype or float32; position and segment may be None
//   gamma, beta                      (E,), of y's dtype or float32; without gamma no layer norm, and sum, mean and rstd
//                                    are None
//   seed, first_row                  (1,) int64, or None
//
// E is at most 8192.
void embedding_layer_norm_forward(const Array& tokens, const Array& word, const Array& position,
                                  const Array& position_ids, const Array& segment, const Array& segments,
                                  const Array& gamma, const Array& beta, const Array& seed, const Array& first_row,
                                  const Array& y, const Array& sum, const Array& mean, const Array& rstd,
                                  int64_t sequence, int keep, float eps, Stream stream);

// Computes ds (N, E), the gradient of the sum, and dgamma and dbeta (E,) float32. partials (2, num_partials, E) float32
// is workspace. Without gamma only dropout is left, and all arrays but dy, seed, first_row and ds are None.
void embedding_layer_norm_backward(const Array& dy, const Array& sum, const Array& mean, const Array& rstd,
                                   const Array& gamma, const Array& seed, const Array& first_row, const Array& ds,
                                   const Array& dgamma, const Array& dbeta, int keep, const Array& partials,
                                   Stream stream);

// Computes the gradient of a table: out[v] = the sum of ds over the tokens whose id is v.
//
//   ds      (N, E)
//   ids     (N,) int32, sorted
//   order   (N,) int64, the token of each sorted id
//   starts  (V + 1,) int64: v occupies [starts[v], starts[v + 1]) of ids
//   runs    (N / run, E) float32, workspace: sums over `run` neighbouring sorted ids
//   out     (V, E) float32
void embedding_gradient(const Array& ds, const Array& ids, const Array& order, const Array& starts, const Array& runs,
                        const Array& out, int64_t run, Stream stream);

}  // namespace fastlm
