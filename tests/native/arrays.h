// Arrays on the heap, without padding, so that AddressSanitizer finds an access one byte past the end.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <random>
#include <vector>

#include "common/array.h"
#include "common/cuda.cuh"

namespace fastlm {

// Ends the program with a message if the condition is false.
#define EXPECT(condition)                                                         \
  do {                                                                            \
    if (!(condition)) {                                                           \
      std::fprintf(stderr, "%s:%d: false: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                               \
    }                                                                             \
  } while (false)

template <typename T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, float>) return DType::kFloat32;
  if constexpr (std::is_same_v<T, half_t>) return DType::kFloat16;
  if constexpr (std::is_same_v<T, bf16_t>) return DType::kBFloat16;
  if constexpr (std::is_same_v<T, int64_t>) return DType::kInt64;
  return DType::kInt32;
}

// A contiguous array that owns its memory.
template <typename T>
class HeapArray {
 public:
  HeapArray(std::initializer_list<int64_t> shape) {
    for (int64_t size : shape) array_.shape[array_.rank++] = size, count_ *= size;
    for (int64_t i = array_.rank - 1, stride = 1; i >= 0; stride *= array_.shape[i--]) array_.strides[i] = stride;
    data_ = std::make_unique<T[]>(count_);
    array_.data = data_.get();
    array_.dtype = dtype_of<T>();
    array_.given = true;
  }

  HeapArray& fill_normal(unsigned seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < count_; i++) data_[i] = T(normal(generator));
    return *this;
  }

  operator const Array&() const { return array_; }
  T& operator[](int64_t i) { return data_[i]; }
  int64_t count() const { return count_; }

  bool finite() const {
    for (int64_t i = 0; i < count_; i++) {
      if (!std::isfinite(float(data_[i]))) return false;
    }
    return true;
  }

 private:
  std::unique_ptr<T[]> data_;
  int64_t count_ = 1;
  Array array_;
};

}  // namespace fastlm
