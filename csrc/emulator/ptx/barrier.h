// Twins of the instructions in common/ptx/barrier.cuh.
#pragma once

#include "emulator/block.h"

namespace fastlm {

inline void barrier_sync(int id, int threads) { emulator::barrier_wait(id, threads); }
inline void barrier_arrive(int id, int threads) { emulator::barrier_arrive(id, threads); }

}  // namespace fastlm
