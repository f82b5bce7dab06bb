// The twin of common/ptx/mma.cuh.
#pragma once

#include "emulator/block.h"

namespace fastlm {

namespace emulator {

template <typename input_t>
void mma(float* d, const uint32_t* a, const uint32_t* b);

}  // namespace emulator

template <typename input_t>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::mma<input_t>(d, a, b);
}

}  // namespace fastlm
