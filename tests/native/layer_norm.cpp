// Runs every kernel of layer_norm.cu under the sanitizers, with shapes that reach each code path. Python tests the
// results.
#include "layer_norm.h"

#include "arrays.h"
#include "common/philox.cuh"

namespace fastlm {

namespace {

const Array kNone;

template <typename T>
void run(int64_t N, int64_t E, bool everything) {
  HeapArray<T> x{N, E}, residual{N, E}, y{N, E}, sum{N, E}, dy{N, E}, ds{N, E}, dx{N, E}, bias{E};
  HeapArray<float> mean{N}, rstd{N}, gamma{E}, dgamma{E}, dbeta{E}, dbias{E}, partials{everything ? 3 : 2, 2, E};
  HeapArray<int64_t> seed{1};
  x.fill_normal(1), residual.fill_normal(2), bias.fill_normal(3), gamma.fill_normal(4), dy.fill_normal(5);
  const auto optional = [&](const Array& array) -> const Array& { return everything ? array : kNone; };
  const int keep = everything ? 230 : kKeepLevels;
  add_layer_norm_forward(x, residual, optional(bias), gamma, optional(bias), optional(seed), optional(seed), y, sum,
                         mean, rstd, keep, 1e-5f, 0);
  add_layer_norm_backward(dy, optional(x), sum, mean, rstd, gamma, optional(seed), optional(seed), ds, optional(dx),
                          dgamma, optional(dbeta), optional(dbias), keep, partials, 0);
  const auto finite = [&] { return ds.finite() && dx.finite() && dgamma.finite() && dbeta.finite() && dbias.finite(); };
  EXPECT(y.finite() && finite());
  add_layer_norm_backward_from_output(dy, y, rstd, gamma, optional(bias), optional(seed), optional(seed), ds,
                                      optional(dx), dgamma, optional(dbeta), optional(dbias), keep, partials, 0);
  EXPECT(finite());
}

}  // namespace
}  // namespace fastlm

int main() {
  using namespace fastlm;
  for (int64_t E : {200, 512, 768, 1024, 2048, 8192}) {
    run<bf16_t>(3, E, E % 3 == 0);
    run<float>(2, E, E % 3 != 0);
  }
  for (int64_t E : {1, 99, 1001, 5003}) run<bf16_t>(5, E, E % 2 == 1);
  run<half_t>(7, 768, true);
  run<half_t>(2, 777, true);
  run<bf16_t>(0, 768, true);
}
