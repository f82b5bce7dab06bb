// Runs every attention kernel under the sanitizers, with shapes that reach each code path. Python tests the results.
#include "attention/attention.h"

#include "arrays.h"

namespace fastlm {

namespace {

const Array kNone;

enum class Layout { kPadded, kPaddedLeft, kPacked };
using enum Layout;

// Runs the forward and backward of two sequences, S and S - missing rows long.
template <typename T>
void run(int64_t S, int64_t D, int missing, Layout layout, bool causal, int keep) {
  constexpr int64_t B = 2, H = 2;
  const int64_t rows = B * S - missing;
  const bool packed = layout == kPacked;
  const auto activations = [&] { return packed ? HeapArray<T>{rows, H, D} : HeapArray<T>{B, S, H, D}; };
  HeapArray<T> q = activations(), k = activations(), v = activations(), o = activations(), dout = activations();
  HeapArray<T> dq = activations(), dk = activations(), dv = activations();
  HeapArray<float> lse = packed ? HeapArray<float>{rows, H} : HeapArray<float>{B, H, S};
  HeapArray<float> scratch = packed ? HeapArray<float>{2, rows, H} : HeapArray<float>{2, B, H, S};
  HeapArray<int> lengths{B}, starts{B}, cu_seqlens{B + 1};
  HeapArray<int64_t> seed{1};
  lengths[0] = S, lengths[1] = S - missing;
  starts[0] = 0, starts[1] = missing;
  cu_seqlens[0] = 0, cu_seqlens[1] = S, cu_seqlens[2] = rows;
  q.fill_normal(1), k.fill_normal(2), v.fill_normal(3), dout.fill_normal(4);
  const Array& of_padded = packed ? kNone : static_cast<const Array&>(lengths);
  const Array& of_packed = packed ? static_cast<const Array&>(cu_seqlens) : kNone;
  const Array& of_padded_left = layout == kPaddedLeft ? static_cast<const Array&>(starts) : kNone;
  const Array& if_dropped = keep < 256 ? static_cast<const Array&>(seed) : kNone;
  attention_forward(q, k, v, of_padded, of_padded_left, of_packed, S, if_dropped, kNone, o, lse, causal, 0.125f, keep,
                    0);
  attention_backward(dout, q, k, v, o, lse, of_padded, of_padded_left, of_packed, S, if_dropped, if_dropped, dq, dk, dv,
                     scratch, causal, 0.125f, keep, 0);
  EXPECT(o.finite() && dq.finite() && dk.finite() && dv.finite());
}

}  // namespace
}  // namespace fastlm

int main() {
  using namespace fastlm;
  run<bf16_t>(70, 64, 31, kPadded, true, 230);  // one pass, four warps
  run<half_t>(70, 64, 31, kPacked, false, 256);
  run<bf16_t>(130, 64, 129, kPadded, false, 230);  // one pass, eight warps
  run<half_t>(130, 32, 1, kPacked, true, 230);
  run<bf16_t>(261, 64, 261, kPadded, true, 230);  // two passes, and an empty sequence
  run<half_t>(258, 40, 100, kPacked, false, 256);
  run<half_t>(70, 64, 31, kPaddedLeft, true, 230);  // padding on the left: each pass
  run<bf16_t>(130, 128, 129, kPaddedLeft, false, 256);
  run<bf16_t>(261, 32, 261, kPaddedLeft, true, 230);
  run<bf16_t>(33, 128, 16, kPadded, true, 230);
  run<half_t>(130, 96, 3, kPacked, true, 230);
}
