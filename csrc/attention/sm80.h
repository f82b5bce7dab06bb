// Launchers of the kernels that use mma.sync, ldmatrix and cp.async; they run on Ampere to Blackwell. `heads` is B * H.
#pragma once

#include "attention/params.h"
#include "common/array.h"

namespace fastlm::attention {

template <typename input_t>
void forward_sm80(const ForwardParams<input_t>& p, int64_t heads, Stream stream);

// Runs one pass if one CTA can hold all keys of a sequence, because then no dq tile needs a sum over CTAs. Otherwise
// runs two passes: dq over tiles of queries, then dk and dv over tiles of keys.
template <typename input_t>
void backward_sm80(const BackwardParams<input_t>& p, int64_t heads, Stream stream);

// Runs the first of the two passes, which writes dq and delta.
template <typename input_t>
void backward_dq_sm80(const BackwardParams<input_t>& p, int64_t heads, Stream stream);

}  // namespace fastlm::attention
