// ldmatrix: the last lane of a warp to arrive distributes the rows among all lanes.
#include "emulator/ptx/copy.h"

namespace fastlm::emulator {

namespace {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffff;

struct MatrixArguments {
  uint16_t row[8];
  uint32_t* r;
};

template <int kMatrices, bool kTransposed>
void distribute_matrices(void* const* arguments, unsigned) {
  const auto lane = [&](int i) { return static_cast<MatrixArguments*>(arguments[i]); };
  for (int i = 0; i < kWarp; i++) {
    const int g = i / 4, t = i % 4;
    for (int m = 0; m < kMatrices; m++) {
      const auto at = [&](int row, int column) -> uint32_t { return lane(8 * m + row)->row[column]; };
      lane(i)->r[m] = kTransposed ? at(2 * t, g) | at(2 * t + 1, g) << 16 : at(g, 2 * t) | at(g, 2 * t + 1) << 16;
    }
  }
}

}  // namespace

template <int kMatrices, bool kTransposed>
void exchange_matrices(uint32_t* r, const uint4& row) {
  MatrixArguments arguments{{}, r};
  __builtin_memcpy(arguments.row, &row, sizeof row);
  rendezvous(kTransposed ? "ldmatrix_trans" : "ldmatrix", kAll, distribute_matrices<kMatrices, kTransposed>,
             &arguments);
}

void check_aligned(const char* instruction, const void* at, int bytes) {
  if (reinterpret_cast<uintptr_t>(at) % bytes != 0) {
    fail("%s: the address %p is not a multiple of %d", instruction, at, bytes);
  }
}

template void exchange_matrices<1, false>(uint32_t*, const uint4&);
template void exchange_matrices<2, false>(uint32_t*, const uint4&);
template void exchange_matrices<4, false>(uint32_t*, const uint4&);
template void exchange_matrices<1, true>(uint32_t*, const uint4&);
template void exchange_matrices<2, true>(uint32_t*, const uint4&);
template void exchange_matrices<4, true>(uint32_t*, const uint4&);

}  // namespace fastlm::emulator
