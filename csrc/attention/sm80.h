// The kernels of the sm_80 family, from Ampere to Blackwell: mma.sync, ldmatrix, cp.async. `heads` is B * H.
#pragma once

#include "attention/params.h"
#include "common/array.h"

namespace fastlm::attention {

template <typename input_t>
void forward_sm80(const Forward<input_t>& p, int64_t heads, Stream stream);

// In one pass where all keys fit into a block that the chip has room for, so that a tile of dq is done when it is
// computed; else in two, over blocks of queries and over blocks of keys.
template <typename input_t>
void backward_sm80(const Backward<input_t>& p, int64_t heads, Stream stream);

// The first of the two: dq, and delta.
template <typename input_t>
void backward_queries_sm80(const Backward<input_t>& p, int64_t heads, Stream stream);

}  // namespace fastlm::attention
