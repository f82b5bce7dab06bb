// Lets pybind11 convert a torch tensor or None to an Array. It reads the tensor through the DLPack exchange API, a
// table of C functions that torch stores in its Tensor class (https://dmlc.github.io/dlpack/latest/c_api.html). This
// needs no torch header and no reference count, and takes about 30 ns per tensor; the Python attributes .data_ptr(),
// .dtype, .shape and .stride() would take 400 ns.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>

#include "common/array.h"

namespace fastlm::dlpack {

// The parts of dlpack.h that this file reads. Their layout is fixed within a major version.
struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct ExchangeApi {
  uint32_t major, minor;
  ExchangeApi* previous;  // the table of an older major version
  void* managed_tensor_functions[3];
  int (*tensor_from_object)(void* object, DLTensor* out);
};

constexpr uint32_t kMajor = 1;

// torch.Tensor and its exchange API.
struct TensorClass {
  pybind11::object type = pybind11::module_::import("torch").attr("Tensor");
  ExchangeApi* api = nullptr;

  TensorClass() {
    auto capsule = pybind11::reinterpret_borrow<pybind11::capsule>(type.attr("__dlpack_c_exchange_api__"));
    api = static_cast<ExchangeApi*>(capsule.get_pointer());
    while (api != nullptr && api->major != kMajor) api = api->previous;
    if (api == nullptr) throw pybind11::import_error("fastlm needs a torch with the DLPack exchange API, version 1");
  }

  static const TensorClass& get() {
    static const auto* const found =
        new TensorClass;  // never freed, because Python ends before static variables are destroyed
    return *found;
  }
};

inline std::optional<DType> dtype(const DLTensor& tensor) {
  constexpr int kInt = 0, kFloat = 2, kBFloat = 4, kBool = 6;
  if (tensor.dtype.lanes != 1) return {};
  switch (tensor.dtype.code << 8 | tensor.dtype.bits) {
    case kFloat << 8 | 32:
      return DType::kFloat32;
    case kFloat << 8 | 16:
      return DType::kFloat16;
    case kBFloat << 8 | 16:
      return DType::kBFloat16;
    case kInt << 8 | 32:
      return DType::kInt32;
    case kInt << 8 | 64:
      return DType::kInt64;
    case kBool << 8 | 8:
      return DType::kBool;
    default:
      return {};
  }
}

}  // namespace fastlm::dlpack

template <>
struct pybind11::detail::type_caster<fastlm::Array> {
  PYBIND11_TYPE_CASTER(fastlm::Array, const_name("torch.Tensor | None"));

  bool load(handle source, bool) {
    if (source.is_none()) return true;
    const auto& tensors = fastlm::dlpack::TensorClass::get();
    if (!isinstance(source, tensors.type)) return false;
    fastlm::dlpack::DLTensor tensor;
    if (tensors.api->tensor_from_object(source.ptr(), &tensor) != 0) throw error_already_set();
    const auto dtype = fastlm::dlpack::dtype(tensor);
    if (!dtype) throw value_error("the kernels take no tensors of " + std::string(str(source.attr("dtype"))));
    fastlm::check(tensor.ndim <= fastlm::Array::kMaxRank, "the kernels take tensors of at most ",
                  fastlm::Array::kMaxRank, " dimensions, got ", tensor.ndim);
    value.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    value.dtype = *dtype;
    value.rank = tensor.ndim;
    value.given = true;
    for (int i = 0; i < tensor.ndim; i++) {
      value.shape[i] = tensor.shape[i];
      value.strides[i] = tensor.strides[i];
    }
    return true;
  }
};
