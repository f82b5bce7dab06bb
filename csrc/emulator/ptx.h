// The twins of the instructions in common/ptx.cuh. Memory is touched here, in the kernels' own compilation, by the
// thread that names the address, so that the sanitizers see whose access it is.
#pragma once

#include <cmath>
#include <type_traits>

#include "emulator/block.h"
#include "emulator/language.h"

namespace fastlm {

namespace emulator {

template <int kMatrices, bool kTransposed>
void exchange_matrices(uint32_t* r, const uint4& row);

template <typename input_t>
void multiply(float* d, const uint32_t* a, const uint32_t* b);

void check_aligned(const char* instruction, const void* at);

struct Copy {
  uint4* to;
  uint4 value;
};
void start_copy(const Copy& copy);
void commit_copies();
// The next copy of a group that is to be waited for, if there is one left.
bool finish_copy(int pending, Copy& copy);

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

template <typename input_t>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::multiply<input_t>(d, a, b);
}

// What is copied lies in no one's sight until the wait: the place holds 0xff, which is no number.
inline void cp_async(void* to, const void* from, bool valid) {
  emulator::check_aligned("cp_async", to);
  uint4 value{};
  if (valid) {
    emulator::check_aligned("cp_async", from);
    value = *static_cast<const uint4*>(from);
    emulator::count_read(sizeof value);
  }
  *static_cast<uint4*>(to) = uint4{~0u, ~0u, ~0u, ~0u};
  emulator::start_copy({static_cast<uint4*>(to), value});
}

inline void cp_async_commit() { emulator::commit_copies(); }

template <int kPending>
void cp_async_wait() {
  emulator::Copy copy;
  while (emulator::finish_copy(kPending, copy)) *copy.to = copy.value;
}

inline void barrier_sync(int id, int threads) { emulator::barrier_wait(id, threads); }
inline void barrier_arrive(int id, int threads) { emulator::barrier_arrive(id, threads); }

inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}

}  // namespace fastlm
