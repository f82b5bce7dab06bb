// Launches kernels, on a stream of the GPU or in the emulator.
#pragma once

#include <stdexcept>
#include <string>

#include "common/array.h"
#include "common/cuda.cuh"

namespace fastlm {

#if !defined(FASTLM_EMULATOR)
inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // clear the error, or the next launch would report it
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Returns an attribute of the current device.
inline int device_attribute(cudaDeviceAttr attribute) {
  constexpr const char* kWhat = "the device's attributes cannot be read";
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), kWhat);
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), kWhat);
  return value;
}
#endif

// Runs kernel<<<grid, threads, shared, stream>>>(arguments...). `shared` is dynamic shared memory in bytes and may
// exceed 48 KiB. Does nothing for an empty grid. Throws std::runtime_error if CUDA or the emulator reports an error.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared, Stream stream,
            const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#if defined(FASTLM_EMULATOR)
  (void)stream;
  emulator::run(grid, dim3(threads), shared, [&] { kernel(arguments...); });
#else
  const auto cuda_stream = reinterpret_cast<cudaStream_t>(stream);
  constexpr size_t kDefaultLimit = 48 * 1024;
  constexpr const char* kWhat = "a CUDA kernel could not be launched";
  if (shared > kDefaultLimit) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
               kWhat);
  }
  kernel<<<grid, threads, shared, cuda_stream>>>(arguments...);
  check_cuda(cudaGetLastError(), kWhat);
#endif
}

// Returns the largest shared memory, static and dynamic, of a CTA on the current device, in bytes.
inline size_t max_shared_memory() {
#if defined(FASTLM_EMULATOR)
  return 227 * 1024;  // as on an H100
#else
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
#endif
}

// Returns the number of SMs of the current device.
inline int num_sms() {
#if defined(FASTLM_EMULATOR)
  return 1;  // so that a test with few heads gives a persistent CTA several of them
#else
  return device_attribute(cudaDevAttrMultiProcessorCount);
#endif
}

// Returns the number of CTAs for `count` items if each CTA takes `size` of them.
inline unsigned grid_dim(int64_t count, int64_t size) {
  const int64_t needed = (count + size - 1) / size;
  check(needed <= 0x7fffffff, "a grid can have at most 2^31 - 1 CTAs, but ", count, " rows need ", needed);
  return static_cast<unsigned>(needed);
}

}  // namespace fastlm
