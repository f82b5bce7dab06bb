// GELU (Hendrycks & Gimpel 2016, section 2) and its derivative.
//
// GELU(x) = x Phi(x) and GELU'(x) = Phi(x) + x Phi'(x), where Phi is the normal distribution function. The papers' code
// approximates
//   Phi(x) = (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3), Phi' = Phi(x) Phi(-x) 2u'.
// Phi(|x|) = 1 / (1 + e) and Phi(-|x|) = e / (1 + e) with e = exp(-2|u|). Neither is a difference, so nothing cancels.
//
// __fmul_rn rounds x Phi(x) and keeps the compiler from fusing the product into a later sum or difference. Otherwise
// each use would see a slightly different GELU(x), and a constant row would differ from its mean.
#pragma once

#include <cmath>

#include "common/cuda.cuh"
#include "common/ptx/math.cuh"

namespace fastlm {

constexpr float kCubic = 0.044715f;
constexpr float kTwoRootTwoOverPi = 1.5957691216057308f;              // 2 sqrt(2 / pi), 2u' at 0
constexpr float kToBase2 = -kTwoRootTwoOverPi * 1.4426950408889634f;  // exp(-2u) = 2^(kToBase2 (x + kCubic x^3))
constexpr float kRootHalf = 0.7071067811865476f;
constexpr float kDensityAt0 = 0.3989422804014327f;  // 1 / sqrt(2 pi)

struct GeluTails {
  float upper, lower;  // Phi(|x|) and Phi(-|x|) of the tanh form

  __device__ __forceinline__ explicit GeluTails(float x) {
    const float e = exp2_approx(fabsf(x) * kToBase2 * (x * x * kCubic + 1.0f));
    upper = 1.0f / (1.0f + e);
    lower = e * upper;
  }
  __device__ __forceinline__ float phi(float x) const { return x < 0.0f ? lower : upper; }
};

// Replaces each x by GELU(x), by tanh or by erf. All threads take the same branch.
template <int kN>
__device__ __forceinline__ void gelu(float (&x)[kN], bool tanh) {
  if (tanh) {
#pragma unroll
    for (int j = 0; j < kN; j++) x[j] = __fmul_rn(x[j], GeluTails(x[j]).phi(x[j]));
  } else {
#pragma unroll
    for (int j = 0; j < kN; j++) x[j] = __fmul_rn(x[j], 0.5f + 0.5f * erff(x[j] * kRootHalf));
  }
}

// Replaces each x by GELU(x) and sets `slope` to GELU'(x).
template <int kN>
__device__ __forceinline__ void gelu_and_slope(float (&x)[kN], float (&slope)[kN], bool tanh) {
#pragma unroll
  for (int j = 0; j < kN; j++) {
    float phi, density;
    if (tanh) {
      const GeluTails tails(x[j]);
      phi = tails.phi(x[j]);
      density = tails.upper * tails.lower * kTwoRootTwoOverPi * (3.0f * kCubic * x[j] * x[j] + 1.0f);
    } else {
      phi = 0.5f + 0.5f * erff(x[j] * kRootHalf);
      density = expf(-0.5f * x[j] * x[j]) * kDensityAt0;
    }
    slope[j] = phi + x[j] * density;
    x[j] = __fmul_rn(x[j], phi);
  }
}

}  // namespace fastlm
