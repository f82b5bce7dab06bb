"""GELU (Hendrycks & Gimpel 2016, section 2) and its derivative, for kernels.

Phi is the normal distribution function: GELU(x) = x Phi(x) and GELU'(x) = Phi(x) + x Phi'(x). The GPT-1 and BERT code
approximates it with tanh:
    Phi(x) = (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3), Phi' = Phi(x) Phi(-x) 2u'.
Both Phi(|x|) and Phi(-|x|) are computed from exp(-2|u|). Neither is a difference, so nothing cancels.

x Phi(x) is computed as fma(x, Phi(x), 0). The compiler would merge a plain product into the sum or difference that uses
it, and each use would then see a differently rounded GELU(x): the values of a constant row would differ from the mean.
"""

import math

import triton
import triton.language as tl

CUBIC = tl.constexpr(0.044715)
SLOPE = tl.constexpr(2 * math.sqrt(2 / math.pi))  # 2u = SLOPE (x + CUBIC x^3)
BASE_2 = tl.constexpr(-2 * math.sqrt(2 / math.pi) / math.log(2))  # exp(-2u) = 2^(BASE_2 (x + CUBIC x^3))
SLOPE_CUBIC = tl.constexpr(3 * 0.044715)
ROOT_HALF = tl.constexpr(math.sqrt(0.5))
DENSITY = tl.constexpr(1 / math.sqrt(2 * math.pi))  # the normal density at 0


@triton.jit
def _tails(x):
    """Returns Phi(|x|) and Phi(-|x|) of the tanh form."""
    e = tl.exp2(tl.abs(x) * BASE_2 * (x * x * CUBIC + 1.0))
    upper = 1.0 / (1.0 + e)
    return upper, e * upper


@triton.jit
def gelu(x, TANH: tl.constexpr):
    """Returns GELU(x) of fp32 values, in the tanh or the erf form."""
    if TANH:
        upper, lower = _tails(x)
        return tl.fma(x, tl.where(x < 0.0, lower, upper), 0.0)
    else:
        return tl.fma(x, 0.5 + 0.5 * tl.erf(x * ROOT_HALF), 0.0)


@triton.jit
def gelu_and_slope(x, TANH: tl.constexpr):
    """Returns GELU(x) and GELU'(x) of fp32 values, in the tanh or the erf form."""
    if TANH:
        upper, lower = _tails(x)
        phi = tl.where(x < 0.0, lower, upper)
        density = upper * lower * SLOPE * (x * x * SLOPE_CUBIC + 1.0)
    else:
        phi = 0.5 + 0.5 * tl.erf(x * ROOT_HALF)
        density = tl.exp(-0.5 * x * x) * DENSITY
    return tl.fma(x, phi, 0.0), phi + x * density
