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

void check_aligned(const char* instruction, const void* at, int bytes = 16);

struct Copy {
  void* to;
  uint4 value;
  int bytes;
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
  emulator::Copy copy;
  while (emulator::finish_copy(kPending, copy)) std::memcpy(copy.to, &copy.value, copy.bytes);
}

inline void barrier_sync(int id, int threads) { emulator::barrier_wait(id, threads); }
inline void barrier_arrive(int id, int threads) { emulator::barrier_arrive(id, threads); }

inline uint32_t anew(uint32_t x) { return x; }

inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t which) {
  const uint64_t all = static_cast<uint64_t>(b) << 32 | a;
  uint32_t bytes = 0;
  for (int n = 0; n < 4; n++) {
    const unsigned digit = which >> 4 * n & 0xf, byte = all >> 8 * (digit & 7) & 0xff;
    bytes |= (digit < 8 ? byte : byte >> 7 == 0 ? 0 : 0xff) << 8 * n;
  }
  return bytes;
}

inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}

}  // namespace fastlm
