// Launchers of attention: they check the arrays, find the strides and choose an architecture's kernels.
#include <utility>

#include "attention/attention.h"
#include "attention/sm80.h"
#include "common/philox.cuh"
#include "common/static_switch.h"

namespace fastlm {

namespace {

using attention::Problem;
using attention::View;

// The checked sizes and parameters that all arrays of one call share.
struct Call {
  const Array& q;
  bool packed;
  int64_t B, H;
  Problem problem;

  Call(const Array& q, const Array& lengths, const Array& starts, const Array& cu_seqlens, int max_seqlen,
       const Array& seed, const Array& first_sequence, bool causal, float scale, int keep)
      : q(q), packed(bool(cu_seqlens)) {
    check(q.rank == (packed ? 3 : 4), "q must have shape (B, S, H, D), or (T, H, D) with cu_seqlens, got ", q.rank,
          " dimensions");
    B = packed ? cu_seqlens.shape[0] - 1 : q.shape[0];
    H = q.shape[q.rank - 2];
    const int64_t D = q.shape[q.rank - 1];
    check(D % attention::kVecSize == 0 && 0 < D && D <= attention::kMaxHeadDim,
          "the head's dimension must be a multiple of 8 up to 128, got ", D);
    check(packed || max_seqlen == q.shape[1], "max_seqlen must be S = ", q.shape[1], ", got ", max_seqlen);
    check(!packed || !lengths, "there can be lengths or cu_seqlens, not both");
    check(!starts || lengths, "starts need lengths");
    check(!packed || q.shape[0] <= INT32_MAX, "there can be at most 2^31 - 1 packed rows, got ", q.shape[0]);
    check(B * H < 1 << 30, "there can be at most 2^30 sequences times heads, got ", B * H);
    if (lengths) lengths.expect("lengths", DType::kInt32, {B});
    if (starts) starts.expect("starts", DType::kInt32, {B});
    if (packed) cu_seqlens.expect("cu_seqlens", DType::kInt32, {B + 1});
    check_dropout(seed, "first_sequence", first_sequence, keep);
    check(scale > 0.0f, "scale must be above 0, got ", scale);
    problem = {.lengths = lengths.as<int>(),
               .cu_seqlens = cu_seqlens.as<int>(),
               .max_seqlen = max_seqlen,
               .total_rows = static_cast<int>(q.shape[0]),
               .H = static_cast<int>(H),
               .D = static_cast<int>(D),
               .causal = causal,
               .scale = scale,
               .seed = seed.as<int64_t>(),
               .first_sequence = first_sequence.as<int64_t>(),
               .keep = static_cast<uint32_t>(keep),
               .starts = starts.as<int>()};
  }

  template <typename T>
  View<T> activations(const char* what, const Array& x) const {
    check(bool(x), what, " must be a tensor, got None");
    check(x.dtype == q.dtype, what, " must be ", name(q.dtype), ", got ", name(x.dtype));
    bool same = x.rank == q.rank, aligned = reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0;
    for (int i = 0; same && i < x.rank; i++) {
      same = x.shape[i] == q.shape[i];
      aligned = aligned && (i == x.rank - 1 ? x.strides[i] == 1 : x.strides[i] % attention::kVecSize == 0);
    }
    check(same, what, " must have shape ", Array::Tuple{q.shape, q.rank}, ", got ", Array::Tuple{x.shape, x.rank});
    check(aligned || empty(), what, " must be aligned to 16 bytes, with a last stride of 1 and others that are ",
          "multiples of 8, got strides ", Array::Tuple{x.strides, x.rank});
    const int64_t* const strides = x.strides + x.rank - 3;
    return {.data = x.as<T>(),
            .batch_stride = packed ? 0 : x.strides[0],
            .row_stride = strides[0],
            .head_stride = strides[1]};
  }

  // Returns the view of an array that has one value per row and head, such as lse.
  template <typename T>
  View<T> row_stats(T* data) const {
    if (packed) return {.data = data, .batch_stride = 0, .row_stride = H, .head_stride = 1};
    return {.data = data, .batch_stride = H * problem.max_seqlen, .row_stride = 1, .head_stride = problem.max_seqlen};
  }

  void check_lse(const Array& lse) const {
    if (packed) return lse.expect("lse", DType::kFloat32, {q.shape[0], H});
    lse.expect("lse", DType::kFloat32, {B, H, problem.max_seqlen});
  }

  bool empty() const { return B * H * problem.max_seqlen == 0; }
};

}  // namespace

void attention_forward(const Array& q, const Array& k, const Array& v, const Array& lengths, const Array& starts,
                       const Array& cu_seqlens, int max_seqlen, const Array& seed, const Array& first_sequence,
                       const Array& o, const Array& lse, bool causal, float scale, int keep, Stream stream) {
  const Call call(q, lengths, starts, cu_seqlens, max_seqlen, seed, first_sequence, causal, scale, keep);
  call.check_lse(lse);
  with_half_type(q.dtype, [&](auto type) {
    using input_t = typename decltype(type)::type;
    const attention::ForwardParams<input_t> p{.problem = call.problem,
                                              .q = call.activations<const input_t>("q", q),
                                              .k = call.activations<const input_t>("k", k),
                                              .v = call.activations<const input_t>("v", v),
                                              .o = call.activations<input_t>("o", o),
                                              .lse = call.row_stats(lse.as<float>())};
    if (!call.empty()) attention::forward_sm80(p, call.B * call.H, stream);
  });
}

void attention_backward(const Array& dout, const Array& q, const Array& k, const Array& v, const Array& o,
                        const Array& lse, const Array& lengths, const Array& starts, const Array& cu_seqlens,
                        int max_seqlen, const Array& seed, const Array& first_sequence, const Array& dq,
                        const Array& dk, const Array& dv, const Array& scratch, bool causal, float scale, int keep,
                        Stream stream) {
  const Call call(q, lengths, starts, cu_seqlens, max_seqlen, seed, first_sequence, causal, scale, keep);
  call.check_lse(lse);
  if (call.packed) {
    scratch.expect("scratch", DType::kFloat32, {2, q.shape[0], call.H});
  } else {
    scratch.expect("scratch", DType::kFloat32, {2, call.B, call.H, max_seqlen});
  }
  with_half_type(q.dtype, [&](auto type) {
    using input_t = typename decltype(type)::type;
    const attention::BackwardParams<input_t> p{.problem = call.problem,
                                               .q = call.activations<const input_t>("q", q),
                                               .k = call.activations<const input_t>("k", k),
                                               .v = call.activations<const input_t>("v", v),
                                               .o = call.activations<const input_t>("o", o),
                                               .dout = call.activations<const input_t>("do", dout),
                                               .lse = call.row_stats(static_cast<const float*>(lse.as<float>())),
                                               .delta = scratch.as<float>(),
                                               .dq = call.activations<input_t>("dq", dq),
                                               .dk = call.activations<input_t>("dk", dk),
                                               .dv = call.activations<input_t>("dv", dv)};
    if (!call.empty()) attention::backward_sm80(p, call.B * call.H, stream);
  });
}

}  // namespace fastlm
