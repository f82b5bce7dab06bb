"""A kernel that computes only exponentials, to measure the rate of their unit (ex2: 16 per clock and SM)."""

import triton
import triton.language as tl
from torch import Tensor

ITERATIONS = 256


@triton.jit
def _kernel(X, ITERATIONS: tl.constexpr, BLOCK: tl.constexpr):
    at = X + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(at)
    for _ in range(ITERATIONS):
        x = tl.exp2(-x)  # stays in [0, 1]. Each depends on the previous one, so the compiler cannot remove any
    tl.store(at, x)


def exponentials(x: Tensor) -> None:
    """Applies ITERATIONS exponentials to each element of x, in place. x is float32 with values in [0, 1] and a multiple
    of 1024 elements."""
    _kernel[(x.numel() // 1024,)](x, ITERATIONS=ITERATIONS, BLOCK=1024, num_warps=4)
