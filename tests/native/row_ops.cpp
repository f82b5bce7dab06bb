// Runs the other row kernels and AdamW under the sanitizers, with shapes that reach each code path. Python tests the
// results.
#include "adamw.h"
#include "arrays.h"
#include "bias_gelu.h"
#include "embedding_layer_norm.h"
#include "gelu_layer_norm.h"
#include "layer_norm_gelu.h"
#include "linear_cross_entropy.h"

namespace fastlm {

namespace {

const Array kNone;

template <typename T>
void gelu_family(int64_t N, int64_t E, bool everything) {
  HeapArray<T> x{N, E}, y{N, E}, dy{N, E}, dx{N, E}, bias{E};
  HeapArray<float> mean{N}, rstd{N}, gamma{E}, dgamma{E}, dbeta{E}, dbias{E}, sums1{1, 2, E}, sums2{2, 2, E},
      sums3{3, 2, E};
  x.fill_normal(1), dy.fill_normal(2), bias.fill_normal(3), gamma.fill_normal(4);
  const Array& optional = everything ? bias : kNone;
  bias_gelu_forward(x, optional, y, everything, 0);
  bias_gelu_backward(dy, x, optional, dx, dbias, everything, sums1, 0);
  EXPECT(y.finite() && dx.finite() && dbias.finite());
  gelu_layer_norm_forward(x, optional, gamma, optional, y, mean, rstd, everything, 1e-5f, 0);
  gelu_layer_norm_backward(dy, x, optional, mean, rstd, gamma, dx, dgamma, dbeta, dbias, everything, sums3, 0);
  EXPECT(y.finite() && dx.finite() && dgamma.finite() && dbeta.finite() && dbias.finite());
  layer_norm_gelu_forward(x, gamma, optional, y, mean, rstd, everything, 1e-5f, 0);
  layer_norm_gelu_backward(dy, x, mean, rstd, gamma, optional, dx, dgamma, dbeta, everything, sums2, 0);
  EXPECT(y.finite() && dx.finite() && dgamma.finite() && dbeta.finite());
}

template <typename T>
void embedding(int64_t N, int64_t E, int64_t V, bool everything) {
  HeapArray<T> word{V, E}, y{N, E}, sum{N, E}, dy{N, E}, ds{N, E};
  HeapArray<float> segment{2, E}, gamma{E}, mean{N}, rstd{N}, dgamma{E}, dbeta{E}, partials{2, 2, E}, runs{N / 2, E},
      out{V, E};
  HeapArray<int64_t> tokens{N}, segments{N}, order{N}, starts{V + 1}, seed{1};
  HeapArray<int> ids{N};
  word.fill_normal(1), segment.fill_normal(2), gamma.fill_normal(3), dy.fill_normal(4);
  for (int64_t i = 0; i < N; i++) ids[i] = tokens[i] = i < N / 2 ? 0 : V - 1, segments[i] = i % 2, order[i] = i;
  for (int64_t v = 1; v <= V; v++) starts[v] = v == V ? N : N / 2;
  const auto optional = [&](const Array& array) -> const Array& { return everything ? array : kNone; };
  embedding_layer_norm_forward(tokens, word, optional(word), kNone, optional(segment), optional(segments),
                               optional(gamma), kNone, seed, seed, y, optional(sum), optional(mean), optional(rstd), V,
                               230, 1e-5f, 0);
  embedding_layer_norm_backward(dy, optional(sum), optional(mean), optional(rstd), optional(gamma), seed, kNone, ds,
                                optional(dgamma), optional(dbeta), 230, optional(partials), 0);
  embedding_gradient(ds, ids, order, starts, runs, out, 2, 0);
  EXPECT(y.finite() && ds.finite() && dgamma.finite() && dbeta.finite() && out.finite());
}

template <typename T>
void cross_entropy(int64_t vocabulary, int64_t padded, bool need_gradient, bool in_place = true) {
  HeapArray<T> logits{3, padded}, apart{3, padded};
  HeapArray<int64_t> targets{3};
  HeapArray<float> weights{3}, losses{3}, lse{3};
  logits.fill_normal(1), weights.fill_normal(2);
  targets[0] = 0, targets[1] = -100, targets[2] = vocabulary - 1;
  const Array dlogits = !need_gradient ? Array(kNone) : in_place ? Array(logits) : Array(apart);
  cross_entropy_rows(logits, dlogits, targets, need_gradient ? weights : kNone, losses, lse, vocabulary, -100, 0.1f,
                     1e-4f, 0);
  EXPECT((in_place || !need_gradient || apart.finite()) && logits.finite() && losses.finite() && lse.finite());
}

template <typename T>
void update_parameters(bool optional) {
  HeapArray<T> p1{9000}, p2{7, 3}, g1{9000}, g2{7, 3};
  HeapArray<float> m1{9000}, m2{7, 3}, v1{9000}, v2{7, 3}, squares{2}, norm{};
  HeapArray<float> rates{2}, decays{2}, corrections{2, 2}, max_norm{}, scale{};
  rates[0] = rates[1] = 0.1f, decays[0] = 0.01f, max_norm[0] = 1.0f, scale[0] = 0.5f;
  for (int i = 0; i < 4; i++) corrections[i] = 0.1f * (i + 1);
  p1.fill_normal(1), p2.fill_normal(2), g1.fill_normal(3), g2.fill_normal(4);
  gradient_squares({g1, g2}, squares, 0);
  adamw({p1, p2}, {g1, g2}, {m1, m2}, {v1, v2}, rates, decays, optional ? corrections : kNone, squares,
        optional ? max_norm : kNone, optional ? scale : kNone, norm, 0.9, 0.999, 1e-8f, 2, 0);
  EXPECT(norm[0] > 0.0f && p1.finite() && p2.finite() && v1.finite());
}

}  // namespace
}  // namespace fastlm

int main() {
  using namespace fastlm;
  for (int64_t E : {200, 512, 768, 1024, 2048, 8192}) {
    gelu_family<bf16_t>(3, E, E % 3 == 0);
    gelu_family<float>(2, E, E % 3 != 0);
  }
  for (int64_t E : {1, 99, 5003}) gelu_family<half_t>(5, E, E % 2 == 1);
  gelu_family<bf16_t>(0, 768, true);
  for (int64_t E : {256, 768, 1024, 2048, 8192}) embedding<bf16_t>(5, E, 7, E != 256);
  embedding<float>(5, 777, 1030, true);
  embedding<half_t>(9, 99, 3, false);
  for (bool gradient : {false, true}) {
    cross_entropy<bf16_t>(700, 704, gradient);
    cross_entropy<half_t>(120000, 120000, gradient);  // a row larger than shared memory
    cross_entropy<float>(5001, 5056, gradient);
    cross_entropy<bf16_t>(701, 701, gradient, false);  // rows that start anywhere
    cross_entropy<half_t>(119999, 119999, gradient, false);
    cross_entropy<float>(5, 5, gradient, false);
  }
  update_parameters<float>(true);
  update_parameters<bf16_t>(false);
}
