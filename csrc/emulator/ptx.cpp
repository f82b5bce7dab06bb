// Matrices in the registers of a warp, and the queues of asynchronous copies.
#include "emulator/ptx.h"

namespace fastlm::emulator {

namespace {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffff;

struct MatrixArguments {
  uint16_t row[8];
  uint32_t* r;
};

template <int kMatrices, bool kTransposed>
void distribute(void* const* arguments, unsigned) {
  const auto lane = [&](int i) { return static_cast<MatrixArguments*>(arguments[i]); };
  for (int i = 0; i < kWarp; i++) {
    const int g = i / 4, t = i % 4;
    for (int m = 0; m < kMatrices; m++) {
      const auto at = [&](int row, int column) -> uint32_t { return lane(8 * m + row)->row[column]; };
      lane(i)->r[m] = kTransposed ? at(2 * t, g) | at(2 * t + 1, g) << 16 : at(g, 2 * t) | at(g, 2 * t + 1) << 16;
    }
  }
}

struct ProductArguments {
  float* d;
  const uint32_t *a, *b;
};

template <typename input_t>
float number(uint32_t pair, int half) {
  input_t x;
  x.raw = static_cast<uint16_t>(pair >> 16 * half);
  return x;
}

template <typename input_t>
void multiply_tiles(void* const* arguments, unsigned) {
  float a[16][16], b[16][8], d[16][8];
  for (int i = 0; i < kWarp; i++) {
    const auto& lane = *static_cast<const ProductArguments*>(arguments[i]);
    const int g = i / 4, t = i % 4;
    for (int j = 0; j < 4; j++) {
      const int row = g + j % 2 * 8;
      for (int half = 0; half < 2; half++) a[row][2 * t + j / 2 * 8 + half] = number<input_t>(lane.a[j], half);
      d[g + j / 2 * 8][2 * t + j % 2] = lane.d[j];
    }
    for (int j = 0; j < 2; j++) {
      for (int half = 0; half < 2; half++) b[2 * t + j * 8 + half][g] = number<input_t>(lane.b[j], half);
    }
  }
  for (int row = 0; row < 16; row++) {
    for (int k = 0; k < 16; k++) {
      for (int column = 0; column < 8; column++) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int i = 0; i < kWarp; i++) {
    const auto& lane = *static_cast<const ProductArguments*>(arguments[i]);
    const int g = i / 4, t = i % 4;
    for (int j = 0; j < 4; j++) lane.d[j] = d[g + j / 2 * 8][2 * t + j % 2];
  }
}

}  // namespace

template <int kMatrices, bool kTransposed>
void exchange_matrices(uint32_t* r, const uint4& row) {
  MatrixArguments arguments{{}, r};
  __builtin_memcpy(arguments.row, &row, sizeof row);
  rendezvous(kTransposed ? "ldmatrix_trans" : "ldmatrix", kAll, distribute<kMatrices, kTransposed>, &arguments);
}

template <typename input_t>
void multiply(float* d, const uint32_t* a, const uint32_t* b) {
  ProductArguments arguments{d, a, b};
  rendezvous("mma_m16n8k16", kAll, multiply_tiles<input_t>, &arguments);
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
template void multiply<__half>(float*, const uint32_t*, const uint32_t*);
template void multiply<__nv_bfloat16>(float*, const uint32_t*, const uint32_t*);

}  // namespace fastlm::emulator
