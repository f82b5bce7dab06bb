"""The least that an op must move and compute: lower bounds to hold measurements against.

A tensor that the op is given is read once, a tensor that it returns is written once, and nothing in between exists.
What a kernel does is counted at the head of its file. In the ops' costs N rows (tokens) have E columns, `element` is
the bytes of an activation, and parameters' gradients and statistics are fp32.
"""

from __future__ import annotations

from typing import NamedTuple


class Cost(NamedTuple):
    """Bytes moved and floating-point operations done, forward and backward."""

    forward_bytes: int
    forward_flops: int
    backward_bytes: int
    backward_flops: int


# Operations per element; an exponential and a division count as one each. GELU by tanh, and its derivative where GELU's
# intermediate results are there already.
GELU, GELU_SLOPE = 10, 8
