"""Lower bounds of an op's bytes and operations, to compare measurements with.

The bounds assume that an op reads each argument once, writes each result once, and stores nothing else. The comment at
the top of a kernel's file counts the bytes that the kernel moves. In all costs there are N rows (tokens) of E columns,
`element` is the number of bytes per activation, and statistics and gradients of parameters are fp32.
"""

from __future__ import annotations

from typing import NamedTuple


class Cost(NamedTuple):
    """Holds the bytes moved and the floating-point operations done, forward and backward."""

    forward_bytes: int
    forward_flops: int
    backward_bytes: int
    backward_flops: int


# Operations per element of GELU in its tanh form, and of its derivative if GELU's intermediate results are at hand. An
# exponential counts as one operation, and so does a division.
GELU, GELU_SLOPE = 10, 8
