// The Python module: one m.def per launcher. Callers pass torch tensors as arrays.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "adamw.h"
#include "attention/attention.h"
#include "bias_gelu.h"
#include "common/array_caster.h"
#include "embedding_layer_norm.h"
#include "gelu_layer_norm.h"
#include "layer_norm.h"
#include "layer_norm_gelu.h"
#include "linear_cross_entropy.h"

#if defined(FASTLM_EMULATOR)
#include "emulator/block.h"

namespace {

// Returns the bytes and accesses of kernels in global memory since the last call, and resets the counts.
pybind11::dict take_traffic() {
  using namespace pybind11::literals;
  const auto t = std::exchange(fastlm::emulator::traffic, {});
  return pybind11::dict("read"_a = t.read, "written"_a = t.written, "cached"_a = t.cached, "accesses"_a = t.accesses);
}

}  // namespace

PYBIND11_MODULE(_C_emulated, m) {
  m.attr("architectures") = "the emulator";
  m.def("take_traffic", take_traffic);
#else
PYBIND11_MODULE(_C, m) {
  m.attr("architectures") = FASTLM_ARCHITECTURES;
#endif
  m.def("add_layer_norm_forward", fastlm::add_layer_norm_forward);
  m.def("add_layer_norm_backward", fastlm::add_layer_norm_backward);
  m.def("add_layer_norm_backward_from_output", fastlm::add_layer_norm_backward_from_output);
  m.def("layer_norm_forward", fastlm::layer_norm_forward);
  m.def("layer_norm_backward", fastlm::layer_norm_backward);
  m.def("gelu_layer_norm_forward", fastlm::gelu_layer_norm_forward);
  m.def("gelu_layer_norm_backward", fastlm::gelu_layer_norm_backward);
  m.def("layer_norm_gelu_forward", fastlm::layer_norm_gelu_forward);
  m.def("layer_norm_gelu_backward", fastlm::layer_norm_gelu_backward);
  m.def("bias_gelu_forward", fastlm::bias_gelu_forward);
  m.def("bias_gelu_backward", fastlm::bias_gelu_backward);
  m.def("embedding_layer_norm_forward", fastlm::embedding_layer_norm_forward);
  m.def("embedding_layer_norm_backward", fastlm::embedding_layer_norm_backward);
  m.def("embedding_gradient", fastlm::embedding_gradient);
  m.def("attention_forward", fastlm::attention_forward);
  m.def("attention_backward", fastlm::attention_backward);
  m.def("cross_entropy_rows", fastlm::cross_entropy_rows);
  m.def("gradient_squares", fastlm::gradient_squares);
  m.def("adamw", fastlm::adamw);
}
