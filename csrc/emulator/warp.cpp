// Shuffles, votes and barriers. The last lane of a warp to arrive computes the results of all lanes.
#include "emulator/block.h"

namespace fastlm::emulator {

namespace {

constexpr int kWarp = 32;

struct ShuffleArguments {
  uint64_t value, result;
  int source;
};

int source_lane(Shuffle kind, int lane, int by, int width) {
  const int first = lane & ~(width - 1), last = first + width - 1;
  switch (kind) {
    case Shuffle::kIndex:
      return first + (by & (width - 1));
    case Shuffle::kUp:
      return lane - by < first ? lane : lane - by;
    case Shuffle::kDown:
      return lane + by > last ? lane : lane + by;
    default:
      return (lane ^ by) > last ? lane : lane ^ by;
  }
}

void exchange(void* const* arguments, unsigned mask) {
  for (int i = 0; i < kWarp; i++) {
    auto* to = static_cast<ShuffleArguments*>(arguments[i]);
    if (to == nullptr) continue;
    auto* from = static_cast<ShuffleArguments*>(arguments[to->source]);
    if (from == nullptr) fail("shuffle: lane %d reads lane %d, which the mask %08x leaves out", i, to->source, mask);
    to->result = from->value;
  }
}

struct BallotArguments {
  bool predicate;
  unsigned result;
};

void count_votes(void* const* arguments, unsigned) {
  unsigned votes = 0;
  for (int i = 0; i < kWarp; i++) {
    auto* vote = static_cast<BallotArguments*>(arguments[i]);
    if (vote != nullptr && vote->predicate) votes |= 1u << i;
  }
  for (int i = 0; i < kWarp; i++) {
    if (arguments[i] != nullptr) static_cast<BallotArguments*>(arguments[i])->result = votes;
  }
}

}  // namespace

uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t value, unsigned by, int width) {
  if (width < 1 || width > kWarp || (width & (width - 1)) != 0)
    fail("shuffle: width must be a power of 2 up to 32, got %d", width);
  ShuffleArguments arguments{value, 0, source_lane(kind, lane(), by, width)};
  rendezvous("shuffle", mask, exchange, &arguments);
  return arguments.result;
}

}  // namespace fastlm::emulator

void __syncthreads() { fastlm::emulator::barrier_wait(0, 0); }
void __syncwarp(unsigned mask) { fastlm::emulator::warp_sync(mask); }
void __trap() { fastlm::emulator::fail("the kernel called __trap()"); }

unsigned __ballot_sync(unsigned mask, int predicate) {
  fastlm::emulator::BallotArguments arguments{predicate != 0, 0};
  fastlm::emulator::rendezvous("ballot", mask, fastlm::emulator::count_votes, &arguments);
  return arguments.result;
}
