"""What each op must move and do at the least: bytes to and from memory, floating-point operations.

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


# Operations an element. Of a layer norm forward: mean 1, centring 1, squares 2, rstd 1, gamma and beta 2; backward:
# xhat 2, g = dy * gamma 1, the means of g and g * xhat 3, ds 4, dgamma 2, dbeta 1. Of GELU by tanh 10, its derivative
# given GELU's intermediate results 8 more; an exponential and a division count as one each.
NORM_FORWARD, NORM_BACKWARD, GELU, GELU_SLOPE = 7, 13, 10, 8


def layer_norm(rows: int, columns: int, element: int = 2) -> Cost:
    """x (N, E) to y and statistics; dy and x to dx. bytes = element * 2 N E + 8 N, backward element * 3 N E + 8 N."""
    n = rows * columns
    return Cost(2 * element * n + 8 * rows, NORM_FORWARD * n, 3 * element * n + 8 * rows, NORM_BACKWARD * n)


def add_layer_norm(rows: int, columns: int, element: int = 2, *, dropout: bool = True, keep_sum: bool = True) -> Cost:
    """x and residual (N, E) to y, statistics and, if kept, the sum; dy and the sum or y to ds and, with dropout, dx.

    bytes = element * (3 + keep_sum) N E + 8 N, backward element * (3 + dropout) N E + 8 N. The bias, the residual and
    dropout's factor are an operation each forward, dropout's factor and dbias backward.
    """
    n = rows * columns
    forward = (3 + keep_sum) * element * n + 8 * rows
    backward = (3 + dropout) * element * n + 8 * rows
    return Cost(forward, (NORM_FORWARD + 2 + dropout) * n, backward, (NORM_BACKWARD + 1 + dropout) * n)


def gelu_layer_norm(rows: int, columns: int, element: int = 2) -> Cost:
    """The bytes of layer_norm; GELU, the bias, and backward GELU again, its derivative, a product and dbias."""
    n, norm = rows * columns, layer_norm(rows, columns, element)
    more_forward, more_backward = 1 + GELU, 1 + GELU + GELU_SLOPE + 2
    return norm._replace(
        forward_flops=norm.forward_flops + more_forward * n, backward_flops=norm.backward_flops + more_backward * n
    )


def layer_norm_gelu(rows: int, columns: int, element: int = 2) -> Cost:
    """The bytes of layer_norm; GELU, and backward its argument again (2), its derivative and a product."""
    n, norm = rows * columns, layer_norm(rows, columns, element)
    more_backward = 2 + GELU + GELU_SLOPE + 1
    return norm._replace(
        forward_flops=norm.forward_flops + GELU * n, backward_flops=norm.backward_flops + more_backward * n
    )


def bias_gelu(rows: int, columns: int, element: int = 2) -> Cost:
    """x (N, F) to y; dy and x to dx. bytes = element * 2 N F, backward element * 3 N F.

    Forward the bias and GELU; backward the bias, GELU's derivative, a product and dbias.
    """
    n = rows * columns
    return Cost(2 * element * n, (1 + GELU) * n, 3 * element * n, (1 + GELU + GELU_SLOPE + 2) * n)


def embedding_layer_norm(
    rows: int,
    columns: int,
    vocabulary: int,
    positions: int = 0,
    segments: int = 0,
    element: int = 2,
    table: int = 4,
    *,
    layer_norm: bool = True,
) -> Cost:
    """int64 ids of N tokens and tables of `table` bytes an element to y (with dropout); with LN the sum, statistics.

    bytes = table * E (min(N, V) + positions + segments) + 8 N for each table with ids + element * N E, and with LN
    element * N E + 8 N more. Backward: dy, ids, with LN the sum and statistics, to fp32 gradients of whole tables,
    4 E (V + positions + segments). Operations: forward a sum for each further table, LN, dropout's factor; backward
    that, LN, a sum for each table.
    """
    n, tables = rows * columns, 1 + (positions > 0) + (segments > 0)
    ids = 8 * rows * (1 + (segments > 0))
    small = positions + segments
    saved = element * n + 8 * rows if layer_norm else 0
    forward = table * columns * (min(rows, vocabulary) + small) + ids + element * n + saved
    backward = element * n + ids + saved + 4 * columns * (vocabulary + small)
    return Cost(
        forward,
        (tables + NORM_FORWARD * layer_norm) * n,
        backward,
        (1 + NORM_BACKWARD * layer_norm + tables) * n,
    )


def attention(pairs: int, rows: int, heads: int, head_dim: int, element: int = 2) -> Cost:
    """q, k, v (N, H, D) to o and lse (H, N); do, q, k, v, o and lse to dq, dk and dv; x = N H D elements.

    `pairs` counts the (query, key) of one head that see each other, over all sequences: B S^2, and B S (S + 1) / 2 of
    a causal mask. bytes = element * 4 x + 4 N H, backward element * 8 x + 4 N H. Of operations only the products count,
    2 D a pair: forward two, backward the scores again and four.
    """
    x, lse = rows * heads * head_dim, 4 * rows * heads
    product = 2 * pairs * heads * head_dim
    return Cost(4 * element * x + lse, 2 * product, 8 * element * x + lse, 5 * product)


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


def adamw(elements: int, element: int = 4) -> Cost:
    """One update of `elements` parameters, clipped: gradients to their norm, then with it parameters and fp32 moments.

    bytes = element * (2 + 2) n + 16 n: gradients twice, parameters and both moments read and written. Operations: the
    norm 2, scaling 1, moments 3 and 4, corrections 2, root, eps and division 3, decay 2, step 2. There is no backward.
    """
    return Cost((4 * element + 16) * elements, 19 * elements, 0, 0)
