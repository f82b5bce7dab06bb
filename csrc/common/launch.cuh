// Starting kernels: on a stream of the GPU, or in the emulator.
#pragma once

#include <stdexcept>
#include <string>

#include "common/array.h"
#include "common/cuda.cuh"

namespace fastlm {

#if !defined(FASTLM_EMULATOR)
inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // or the next launch would find it
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// What the current device has of something.
inline int device_attribute(cudaDeviceAttr attribute) {
  constexpr const char* kWhat = "the device cannot be asked what it has";
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), kWhat);
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), kWhat);
  return value;
}
#endif

// kernel<<<grid, threads, shared, stream>>>(arguments...), checked. `shared` is dynamic shared memory in bytes, above
// 48 KiB too. An empty grid is no launch. Throws std::runtime_error where CUDA or the emulator finds fault.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared, Stream stream,
            const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#if defined(FASTLM_EMULATOR)
  (void)stream;
  emulator::run(grid, dim3(threads), shared, [&] { kernel(arguments...); });
#else
  const auto on = reinterpret_cast<cudaStream_t>(stream);
  constexpr size_t kWithoutAsking = 48 * 1024;
  constexpr const char* kWhat = "a CUDA kernel could not be launched";
  if (shared > kWithoutAsking) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
               kWhat);
  }
  kernel<<<grid, threads, shared, on>>>(arguments...);
  check_cuda(cudaGetLastError(), kWhat);
#endif
}

// Bytes of shared memory, static and dynamic, that a block can have on the current device.
inline size_t most_shared_memory() {
#if defined(FASTLM_EMULATOR)
  return 227 * 1024;  // an H100's
#else
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
#endif
}

inline int multiprocessors() {
#if defined(FASTLM_EMULATOR)
  return 1;  // so that few heads are enough for a block to have several
#else
  return device_attribute(cudaDevAttrMultiProcessorCount);
#endif
}

// Blocks of `size` that `count` takes, as a grid's dimension.
inline unsigned blocks(int64_t count, int64_t size) {
  const int64_t needed = (count + size - 1) / size;
  check(needed <= 0x7fffffff, "a grid has at most 2^31 - 1 blocks; ", count, " rows take ", needed);
  return static_cast<unsigned>(needed);
}

}  // namespace fastlm
