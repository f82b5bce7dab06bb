"""Rows of logits to losses and log-sum-exps and, in place, to the logits' gradients.

Bytes a row of V logits of b bytes: read once and, with gradients, written once, 2bV: the floor. For GPT-1's
32768 x 40478 in bf16, at the 3.0 TB/s that a copy reaches on an H100, 1.77 ms. Beside that a row is read again from
L2, but for its last tile: every logit has a part in the sum that each gradient is divided by. In registers a row of
79 KB would leave room for no other, and a multiprocessor would load nothing while it writes; here it has two rows at
work, of which one can load while the other writes. They are 21 MB on an H100, of its 50 MB of L2, and the second pass
goes backwards, so that what was read last, and is surest to be there, comes first.

Instructions matter beside the bytes: an H100 issues about 75 an element in 1.77 ms. Counted in the machine code for
sm_90, V = 40478, bf16: 18, two of them exponentials.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

WARPS = 16  # at most: two programs a multiprocessor, at 64 registers a thread
# Loads of 16 bytes that a thread has under way: 32 KB a multiprocessor, of which 18 hide HBM's latency of 0.8 us.
VECTORS = 2
LOWEST = tl.constexpr(-1e38)  # where maxima begin; -inf would make exp(-inf - -inf), which is NaN


@triton.jit
def _columns(tile: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """A tile's columns, (BLOCK / VECTOR, VECTOR): a row of it is one load of one thread, summed without shuffles."""
    lane, element = tl.arange(0, BLOCK // VECTOR)[:, None], tl.arange(0, VECTOR)[None, :]
    return tile * BLOCK + lane * VECTOR + element


@triton.jit
def _load(ROW, tile: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    col = _columns(tile, BLOCK, VECTOR)
    return tl.load(ROW + col, mask=col < PADDED, other=0.0)


@triton.jit
def _store(ROW, value, tile: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    col = _columns(tile, BLOCK, VECTOR)
    tl.store(ROW + col, value.to(ROW.dtype.element_ty), mask=col < PADDED)


@triton.jit
def _exp(x):
    """tl.exp takes pains with results under 2^-126, at 3 instructions more; they are 0 in any sum from 1 up."""
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def _statistics(
    ROW, V: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr, SMOOTHED: tl.constexpr
):  # fmt: skip
    """The row's maximum `top`, its sum of exp(x - top), its sum of x if SMOOTHED (else 0), and its last tile.

    Each lane goes by a maximum of its own (Milakov and Gimelshein 2018), and they are brought together at the end.
    """
    LAST: tl.constexpr = (V - 1) // BLOCK
    top = tl.full((BLOCK // VECTOR, 1), LOWEST, tl.float32)
    total = tl.zeros((BLOCK // VECTOR, 1), tl.float32)
    plain = tl.zeros((BLOCK // VECTOR, 1), tl.float32)
    for tile in tl.static_range(LAST + 1):
        x = _load(ROW, tile, PADDED, BLOCK, VECTOR).to(tl.float32)
        inner = _columns(tile, BLOCK, VECTOR) < V
        if SMOOTHED:
            plain += tl.sum(tl.where(inner, x, 0.0) if tile == LAST else x, axis=1, keep_dims=True)
        if tile == LAST:
            x = tl.where(inner, x, float("-inf"))
        new = tl.maximum(top, tl.max(x, axis=1, keep_dims=True))
        total = total * _exp(top - new) + tl.sum(_exp(x - new), axis=1, keep_dims=True)
        top = new
    row_top = tl.max(top)
    return row_top, tl.sum(total * _exp(top - row_top)), tl.sum(plain) if SMOOTHED else 0.0, x


@triton.jit
def _zero(ROW, V: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    for tile in tl.static_range((V - 1) // BLOCK + 1):
        _store(ROW, tl.zeros((BLOCK // VECTOR, VECTOR), tl.float32), tile, PADDED, BLOCK, VECTOR)


@triton.jit(
    do_not_specialize=["ignore_index"],
    do_not_specialize_on_alignment=["TARGETS", "ROW_WEIGHTS", "LOSSES", "LSE"],
)
def _rows(
    LOGITS, TARGETS, ROW_WEIGHTS, LOSSES, LSE, ignore_index, label_smoothing, z_loss,
    V: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
    SMOOTHED: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    ROW = LOGITS + row * PADDED
    target = tl.load(TARGETS + row)

    if target == ignore_index:
        tl.store(LOSSES + row, 0.0)
        tl.store(LSE + row, 0.0)
        if GRADIENT:
            _zero(ROW, V, PADDED, BLOCK, VECTOR)
    else:
        # No host looks at targets on a GPU: one out of range makes the row's loss and gradients NaN.
        inside = (target >= 0) & (target < V)
        weight = tl.where(inside, 1.0, float("nan"))
        if ROW_WEIGHTS is not None:
            weight *= tl.load(ROW_WEIGHTS + row).to(tl.float32)
        x_target = tl.load(ROW + target, mask=inside, other=0.0).to(tl.float32)

        top, total, plain, x = _statistics(ROW, V, PADDED, BLOCK, VECTOR, SMOOTHED)
        lse = top + tl.log(total)
        # lse - (1 - e) * x_t - e * mean(x), from the differences to the maximum: beside them lse is rounded coarsely
        loss = tl.log(total) - (1 - label_smoothing) * (x_target - top) - label_smoothing * (plain / V - top)
        tl.store(LOSSES + row, weight * (loss + z_loss * lse * lse))
        tl.store(LSE + row, lse)

        if GRADIENT:
            # w * (softmax * (1 + 2 * z * lse) - (1 - e) * onehot - e / V), and 0 in the padding
            factor = weight * (1 + 2 * z_loss * lse) / total
            onehot, uniform = weight * (1 - label_smoothing), weight * label_smoothing / V if SMOOTHED else 0.0
            LAST: tl.constexpr = (V - 1) // BLOCK
            for i in tl.static_range(LAST + 1):
                at = (target - (LAST - i) * BLOCK).to(tl.int32)
                gradient = _exp(x - top) * factor
                gradient -= tl.where(_columns(0, BLOCK, VECTOR) == at, onehot + uniform, uniform)
                if i == 0:
                    gradient = tl.where(_columns(LAST, BLOCK, VECTOR) < V, gradient, 0.0)
                if i < LAST:  # loaded before this tile is stored, which a load would otherwise wait for
                    x = _load(ROW, LAST - i - 1, PADDED, BLOCK, VECTOR).to(tl.float32)
                _store(ROW, gradient, LAST - i, PADDED, BLOCK, VECTOR)


def cross_entropy_rows(
    logits: Tensor,
    targets: Tensor,
    row_weights: Tensor | None,
    losses: Tensor,
    lse: Tensor,
    vocabulary: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    need_gradient: bool,
) -> None:
    """losses (n,) and lse (n,) fp32 of contiguous logits (n, PADDED), which become their gradients if those are needed.

    Columns from `vocabulary` on are padding: they count for nothing, and their gradients are 0. PADDED is the least
    multiple of 64 that holds the vocabulary.
    """
    rows, padded = logits.shape
    vector = 16 // logits.element_size()
    warp = 32 * VECTORS * vector
    block = min(WARPS * warp, triton.next_power_of_2(padded))
    _rows[(rows,)](
        logits, targets, row_weights, losses, lse, ignore_index, label_smoothing, z_loss,
        V=vocabulary, PADDED=padded, BLOCK=block, VECTOR=vector, SMOOTHED=label_smoothing > 0, GRADIENT=need_gradient,
        num_warps=max(1, block // warp),
    )  # fmt: skip
