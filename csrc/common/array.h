// Array: a tensor as a launcher sees it, with its address, dtype, shape and strides. It owns no memory and needs no
// torch.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <ostream>

#include "common/check.h"

namespace fastlm {

enum class DType { kFloat32, kFloat16, kBFloat16, kInt32, kInt64, kBool };

inline const char* name(DType dtype) {
  constexpr const char* kNames[] = {"float32", "float16", "bfloat16", "int32", "int64", "bool"};
  return kNames[static_cast<int>(dtype)];
}

// A CUDA stream as the integer that torch.cuda.Stream.cuda_stream is in Python.
using Stream = std::uintptr_t;

struct Array {
  static constexpr int kMaxRank = 6;

  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int rank = 0;
  int64_t shape[kMaxRank] = {};
  int64_t strides[kMaxRank] = {};  // in elements
  bool given = false;              // false for None. Null data does not mean None: an empty array may have it

  explicit operator bool() const { return given; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }

  bool contiguous() const {
    int64_t stride = 1;
    bool dense = true;
    for (int i = rank - 1; i >= 0; i--) {
      dense = dense && (shape[i] == 1 || strides[i] == stride);
      stride *= shape[i];
    }
    return dense || stride == 0;  // an empty array is contiguous
  }

  // Throws unless the array is a contiguous tensor of this dtype and shape.
  void expect(const char* what, DType dtype, std::initializer_list<int64_t> shape) const {
    check(given, what, " must be a tensor, got None");
    check(this->dtype == dtype, what, " must be ", name(dtype), ", got ", name(this->dtype));
    bool same = rank == static_cast<int>(shape.size());
    for (int i = 0; same && i < rank; i++) same = this->shape[i] == shape.begin()[i];
    check(same, what, " must have shape ", Tuple{shape.begin(), static_cast<int>(shape.size())}, ", got ",
          Tuple{this->shape, rank});
    check(contiguous(), what, " must be contiguous, got strides ", Tuple{strides, rank});
  }

  // Prints integers as a Python tuple.
  struct Tuple {
    const int64_t* values;
    int count;

    friend std::ostream& operator<<(std::ostream& out, const Tuple& list) {
      for (int i = 0; i < list.count; i++) out << (i == 0 ? "(" : ", ") << list.values[i];
      return out << (list.count == 0 ? "()" : list.count == 1 ? ",)" : ")");
    }
  };
};

}  // namespace fastlm
