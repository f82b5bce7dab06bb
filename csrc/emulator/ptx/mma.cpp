// mma: the last lane of a warp to arrive collects the fragments of all lanes, multiplies, and returns their
// accumulators.
#include "emulator/ptx/mma.h"

namespace fastlm::emulator {

namespace {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffff;

struct MmaArguments {
  float* d;
  const uint32_t *a, *b;
};

// Returns one value of a register that holds two, the first (half 0) in the low half.
template <typename input_t>
float unpack_half(uint32_t pair, int half) {
  input_t x;
  x.raw = static_cast<uint16_t>(pair >> 16 * half);
  return x;
}

template <typename input_t>
void multiply_fragments(void* const* arguments, unsigned) {
  float a[16][16], b[16][8], d[16][8];
  for (int i = 0; i < kWarp; i++) {
    const auto& lane = *static_cast<const MmaArguments*>(arguments[i]);
    const int g = i / 4, t = i % 4;
    for (int j = 0; j < 4; j++) {
      const int row = g + j % 2 * 8;
      for (int half = 0; half < 2; half++) a[row][2 * t + j / 2 * 8 + half] = unpack_half<input_t>(lane.a[j], half);
      d[g + j / 2 * 8][2 * t + j % 2] = lane.d[j];
    }
    for (int j = 0; j < 2; j++) {
      for (int half = 0; half < 2; half++) b[2 * t + j * 8 + half][g] = unpack_half<input_t>(lane.b[j], half);
    }
  }
  for (int row = 0; row < 16; row++) {
    for (int k = 0; k < 16; k++) {
      for (int column = 0; column < 8; column++) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int i = 0; i < kWarp; i++) {
    const auto& lane = *static_cast<const MmaArguments*>(arguments[i]);
    const int g = i / 4, t = i % 4;
    for (int j = 0; j < 4; j++) lane.d[j] = d[g + j / 2 * 8][2 * t + j % 2];
  }
}

}  // namespace

template <typename input_t>
void mma(float* d, const uint32_t* a, const uint32_t* b) {
  MmaArguments arguments{d, a, b};
  rendezvous("mma_m16n8k16", kAll, multiply_fragments<input_t>, &arguments);
}

template void mma<__half>(float*, const uint32_t*, const uint32_t*);
template void mma<__nv_bfloat16>(float*, const uint32_t*, const uint32_t*);

}  // namespace fastlm::emulator
