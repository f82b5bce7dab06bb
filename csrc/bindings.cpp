// The Python module: launchers, with torch tensors as their arrays.
#include <pybind11/pybind11.h>

#include "common/array_caster.h"
#include "layer_norm.h"

#if defined(FASTLM_EMULATOR)
#include "emulator/block.h"

namespace {

// What kernels have moved since the last call: bytes, and accesses to global memory.
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
}
