"""What each op must move and do at the least: bytes to and from memory, floating-point operations of its products.

A tensor that the op is given is read once, one that it returns is written once, and nothing in between exists. These
are floors to hold measurements against, not what a kernel does: its own count is in the head of its file. N rows
(tokens) of E columns; `element` is the bytes of an activation. Parameters' gradients and statistics are fp32.
"""

from __future__ import annotations

from typing import NamedTuple


class Cost(NamedTuple):
    """Bytes moved and floating-point operations done, forward and backward."""

    forward_bytes: int
    forward_flops: int
    backward_bytes: int
    backward_flops: int


def linear_cross_entropy(rows: int, columns: int, vocabulary: int, element: int = 2) -> Cost:
    """Forward: x (N, E), W (V, E) in the activations' dtype and int64 targets to one loss; the product is 2 N E V.

    bytes = element * (N E + V E) + 8 N + 4. Backward, which has to make the logits' gradient anew or keep it: x and W
    again to dx (N, E) and dW (V, E) in fp32; two products, 4 N E V. bytes = element * (2 N E + V E) + 4 V E.
    """
    x, w = rows * columns, vocabulary * columns
    product = 2 * rows * columns * vocabulary
    return Cost(element * (x + w) + 8 * rows + 4, product, element * (2 * x + w) + 4 * w, 2 * product)


def cross_entropy_rows(rows: int, vocabulary: int, element: int = 2) -> Cost:
    """The row kernel of linear_cross_entropy: logits (N, V) and int64 targets to losses and lse, gradients in place.

    bytes = element * N V + (8 + 4 + 4) N read and written for the losses, and element * N V written for the gradients.
    It has no products.
    """
    logits = element * rows * vocabulary
    return Cost(logits + 16 * rows, 0, logits, 0)
