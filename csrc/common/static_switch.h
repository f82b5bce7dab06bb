// Functions that turn run-time values into template arguments.
#pragma once

#include <type_traits>

#include "common/array.h"
#include "common/cuda.cuh"

namespace fastlm {

template <typename T>
struct Type {
  using type = T;
};

// Calls function(Type<input_t>{}) with the element type of an activation.
template <typename Function>
void with_input_type(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::kFloat32:
      return function(Type<float>{});
    case DType::kFloat16:
      return function(Type<half_t>{});
    case DType::kBFloat16:
      return function(Type<bf16_t>{});
    default:
      check(false, "the kernels take activations in float32, float16 or bfloat16, got ", name(dtype));
  }
}

// As with_input_type, for kernels that use mma, which takes only float16 and bfloat16.
template <typename Function>
void with_half_type(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::kFloat16:
      return function(Type<half_t>{});
    case DType::kBFloat16:
      return function(Type<bf16_t>{});
    default:
      check(false, "these kernels take activations in float16 or bfloat16, got ", name(dtype));
  }
}

// Calls function(std::true_type{}) or function(std::false_type{}).
template <typename Function>
void with_bool(bool value, Function&& function) {
  if (value) return function(std::true_type{});
  return function(std::false_type{});
}

// Calls function(std::integral_constant<int, value>{}). Throws if value is not one of kValues.
template <int... kValues, typename Function>
void with_int(int value, Function&& function) {
  const bool found = ((value == kValues && (function(std::integral_constant<int, kValues>{}), true)) || ...);
  check(found, "no kernel was compiled for ", value);
}

}  // namespace fastlm
