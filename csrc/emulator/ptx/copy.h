// Twins of the instructions in common/ptx/copy.cuh. The calling thread itself accesses the memory, in code compiled
// with the kernel, so that the sanitizers see which thread made the access.
#pragma once

#include <cstring>

#include "emulator/block.h"

namespace fastlm {

namespace emulator {

// Runs ldmatrix for the warp. `row` is the matrix row at the address that this lane passes.
template <int kMatrices, bool kTransposed>
void exchange_matrices(uint32_t* r, const uint4& row);

void check_aligned(const char* instruction, const void* at, int bytes = 16);

// A cp_async whose bytes have been read but not yet written.
struct PendingCopy {
  void* to;
  uint4 value;
  int bytes;
};
void start_copy(const PendingCopy& copy);
void commit_copies();
// Removes the oldest copy of the groups to wait for and returns it in `copy`. Returns false if none is left.
bool pop_finished_copy(int pending, PendingCopy& copy);

template <bool kTransposed, int kMatrices>
void load_matrices(uint32_t (&r)[kMatrices], const void* row) {
  uint4 values{};
  if (lane() < 8 * kMatrices) {
    check_aligned("ldmatrix", row);
    values = *static_cast<const uint4*>(row);
  }
  exchange_matrices<kMatrices, kTransposed>(r, values);
}

}  // namespace emulator

template <int kMatrices>
void ldmatrix(uint32_t (&r)[kMatrices], const void* row) {
  emulator::load_matrices<false>(r, row);
}

template <int kMatrices>
void ldmatrix_trans(uint32_t (&r)[kMatrices], const void* row) {
  emulator::load_matrices<true>(r, row);
}

// Until the wait the target holds 0xff bytes, which read as NaN, so that a read before the wait is noticed.
template <int kBytes = 16>
void cp_async(void* to, const void* from, bool valid) {
  emulator::check_aligned("cp_async", to, kBytes);
  uint4 value{};
  if (valid) {
    emulator::check_aligned("cp_async", from, kBytes);
    std::memcpy(&value, from, kBytes);
    emulator::count_read(kBytes);
  }
  std::memset(to, 0xff, kBytes);
  emulator::start_copy({to, value, kBytes});
}

inline void cp_async_commit() { emulator::commit_copies(); }

template <int kPending>
void cp_async_wait() {
  emulator::PendingCopy copy;
  while (emulator::pop_finished_copy(kPending, copy)) std::memcpy(copy.to, &copy.value, copy.bytes);
}

}  // namespace fastlm
