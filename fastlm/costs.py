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


def layer_norm(rows: int, columns: int, element: int = 2) -> Cost:
    """Forward: x (N, E) to y. Backward: dy and x to dx. No products; parameters and statistics are under 1 %.

    bytes = element * 2 N E, and element * 3 N E.
    """
    x = element * rows * columns
    return Cost(2 * x, 0, 3 * x, 0)


def gelu_layer_norm(rows: int, columns: int, element: int = 2) -> Cost:
    """As layer_norm."""
    return layer_norm(rows, columns, element)


def layer_norm_gelu(rows: int, columns: int, element: int = 2) -> Cost:
    """As layer_norm."""
    return layer_norm(rows, columns, element)


def bias_gelu(rows: int, columns: int, element: int = 2) -> Cost:
    """As layer_norm: x to y; dy and x to dx."""
    return layer_norm(rows, columns, element)


def add_layer_norm(rows: int, columns: int, element: int = 2, *, dropout: bool = True) -> Cost:
    """Forward: x and residual (N, E) to y and the sum. Backward: dy and the sum to ds and, with dropout, dx.

    bytes = element * 4 N E, and element * 4 N E (3 N E without dropout, where dx is ds).
    """
    x = element * rows * columns
    return Cost(4 * x, 0, (4 if dropout else 3) * x, 0)


def attention(pairs: int, rows: int, heads: int, head_dim: int, element: int = 2) -> Cost:
    """`pairs` (query, key) that see each other, of one head, over all sequences: B S^2, half of it for causal.

    Forward: q, k, v to o, with two products of 2 D a pair, 4 pairs H D, and lse. Backward: q, k, v, o, do, lse to dq,
    dk, dv, with five products. bytes = element * 4 N H D + 4 N H, and element * 8 N H D + 4 N H.
    """
    x, product = element * rows * heads * head_dim, 2 * pairs * heads * head_dim
    return Cost(4 * x + 4 * rows * heads, 2 * product, 8 * x + 4 * rows * heads, 5 * product)


def embedding_layer_norm(
    batch: int, length: int, columns: int, vocabulary: int, element: int = 2, *, segments: bool, layer_norm: bool
) -> Cost:
    """Forward: a row of the word table a token and int64 ids, to y, and to the sum where there is a layer norm.

    Backward: dy, and the sum, to the word table's gradient (V, E) in fp32. bytes = element * 2 N E (3 N E with layer
    norm) + 8 N a table of ids, and element * N E (2 N E) + 4 V E.
    """
    x = element * batch * length * columns
    ids = 8 * batch * length * (2 if segments else 1)
    return Cost((2 + layer_norm) * x + ids, 0, (1 + layer_norm) * x + 4 * vocabulary * columns, 0)
