"""Computes losses and log-sum-exps of rows of logits, and their gradients, which may replace the logits.

A row of V logits of b bytes is read once and, with gradients, written once: 2bV bytes. Lower bound on an H100 for
GPT-1's 32768 x 40478 in bf16: 1.77 ms, set by HBM (3.0 TB/s, what a copy reaches; computed, not measured). In that time
an H100 issues about 75 instructions per element; 18 were counted in the machine code for sm_90, two of them
exponentials.

Each gradient is divided by a sum over the whole row, so a second pass reads the row again, except for its last tile.
The row is not kept in registers, because a row of 79 KB would fill an SM, which could then not load while it writes.
Here an SM processes two rows, and one is loaded while the other is written. The rows in progress on all SMs are 21 MB,
and an H100's L2 holds 50 MB, so the second pass reads from L2. It goes backwards, because the tiles that were read last
are the most likely to be in L2.

Rows of linear_cross_entropy are padded, so that each starts at 16 bytes. Those of cross_entropy are the caller's; loads
are then as narrow as V demands, 4 bytes for GPT-1's and BERT's in half precision.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

MAX_WARPS = 16  # two programs per SM, at 64 registers per thread
# 16-byte loads in flight per thread: 32 KB per SM. 18 KB are enough to hide HBM's latency of 0.8 us.
LOADS_IN_FLIGHT = 2
INITIAL_MAX = tl.constexpr(-1e38)  # not -inf, because exp(-inf - -inf) is NaN


@triton.jit
def _column_indices(tile: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """Returns a tile's column indices, (BLOCK / VECTOR, VECTOR).

    Each row of the result is one load of one thread, so sums over it need no shuffles.
    """
    lane, element = tl.arange(0, BLOCK // VECTOR)[:, None], tl.arange(0, VECTOR)[None, :]
    return tile * BLOCK + lane * VECTOR + element


@triton.jit
def _load(ROW, tile: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    col = _column_indices(tile, BLOCK, VECTOR)
    return tl.load(ROW + col, mask=col < PADDED, other=0.0)


@triton.jit
def _store(ROW, value, tile: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    col = _column_indices(tile, BLOCK, VECTOR)
    tl.store(ROW + col, value.to(ROW.dtype.element_ty), mask=col < PADDED)


@triton.jit
def _exp(x):
    """Returns exp(x), where results under 2^-126 may be 0.

    tl.exp computes those exactly, with 3 more instructions. They do not matter here, because every sum is at least 1.
    """
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def _row_stats(
    ROW, V: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr, SMOOTHED: tl.constexpr
):  # fmt: skip
    """Returns row_max, row_sum = sum(exp(x - row_max)), sum(x) if SMOOTHED (else 0), and the row's last tile.

    Each lane keeps its own running maximum and sum (Milakov and Gimelshein 2018); they are merged at the end.
    """
    LAST: tl.constexpr = (V - 1) // BLOCK
    row_max = tl.full((BLOCK // VECTOR, 1), INITIAL_MAX, tl.float32)
    row_sum = tl.zeros((BLOCK // VECTOR, 1), tl.float32)
    logit_sum = tl.zeros((BLOCK // VECTOR, 1), tl.float32)
    for tile in tl.static_range(LAST + 1):
        x = _load(ROW, tile, PADDED, BLOCK, VECTOR).to(tl.float32)
        in_vocabulary = _column_indices(tile, BLOCK, VECTOR) < V
        if SMOOTHED:
            logit_sum += tl.sum(tl.where(in_vocabulary, x, 0.0) if tile == LAST else x, axis=1, keep_dims=True)
        if tile == LAST:
            x = tl.where(in_vocabulary, x, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(x, axis=1, keep_dims=True))
        row_sum = row_sum * _exp(row_max - new_max) + tl.sum(_exp(x - new_max), axis=1, keep_dims=True)
        row_max = new_max
    merged_max = tl.max(row_max)
    return merged_max, tl.sum(row_sum * _exp(row_max - merged_max)), tl.sum(logit_sum) if SMOOTHED else 0.0, x


@triton.jit
def _store_zeros(GRADIENTS, V: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    for tile in tl.static_range((V - 1) // BLOCK + 1):
        _store(GRADIENTS, tl.zeros((BLOCK // VECTOR, VECTOR), tl.float32), tile, PADDED, BLOCK, VECTOR)


@triton.jit(
    do_not_specialize=["ignore_index"],
    do_not_specialize_on_alignment=["TARGETS", "ROW_WEIGHTS", "LOSSES", "LSE"],
)
def _cross_entropy(
    LOGITS, DLOGITS, TARGETS, ROW_WEIGHTS, LOSSES, LSE, ignore_index, label_smoothing, z_loss,
    V: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
    SMOOTHED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    ROW = LOGITS + row * PADDED
    if DLOGITS is not None:
        GRADIENTS = DLOGITS + row * PADDED
    target = tl.load(TARGETS + row)

    if target == ignore_index:
        tl.store(LOSSES + row, 0.0)
        tl.store(LSE + row, 0.0)
        if DLOGITS is not None:
            _store_zeros(GRADIENTS, V, PADDED, BLOCK, VECTOR)
    else:
        # The host does not check targets on a GPU: a target out of range makes the row's loss and gradients NaN.
        is_valid = (target >= 0) & (target < V)
        weight = tl.where(is_valid, 1.0, float("nan"))
        if ROW_WEIGHTS is not None:
            weight *= tl.load(ROW_WEIGHTS + row).to(tl.float32)
        x_target = tl.load(ROW + target, mask=is_valid, other=0.0).to(tl.float32)

        row_max, row_sum, logit_sum, x = _row_stats(ROW, V, PADDED, BLOCK, VECTOR, SMOOTHED)
        lse = row_max + tl.log(row_sum)
        # loss = lse - (1 - e) * x_t - e * mean(x). All terms are relative to row_max, because lse is rounded coarsely.
        loss = (
            tl.log(row_sum) - (1 - label_smoothing) * (x_target - row_max) - label_smoothing * (logit_sum / V - row_max)
        )
        tl.store(LOSSES + row, weight * (loss + z_loss * lse * lse))
        tl.store(LSE + row, lse)

        if DLOGITS is not None:
            # gradient = w * (softmax * (1 + 2 * z * lse) - (1 - e) * onehot - e / V), and 0 in the padding
            factor = weight * (1 + 2 * z_loss * lse) / row_sum
            onehot, uniform = weight * (1 - label_smoothing), weight * label_smoothing / V if SMOOTHED else 0.0
            LAST: tl.constexpr = (V - 1) // BLOCK
            for i in tl.static_range(LAST + 1):
                at = (target - (LAST - i) * BLOCK).to(tl.int32)
                gradient = _exp(x - row_max) * factor
                gradient -= tl.where(_column_indices(0, BLOCK, VECTOR) == at, onehot + uniform, uniform)
                if i == 0:
                    gradient = tl.where(_column_indices(LAST, BLOCK, VECTOR) < V, gradient, 0.0)
                if i < LAST:  # the next tile is loaded before this one is stored, so that the load does not wait
                    x = _load(ROW, LAST - i - 1, PADDED, BLOCK, VECTOR).to(tl.float32)
                _store(GRADIENTS, gradient, LAST - i, PADDED, BLOCK, VECTOR)


def cross_entropy_rows(
    logits: Tensor,
    dlogits: Tensor | None,
    targets: Tensor,
    row_weights: Tensor | None,
    losses: Tensor,
    lse: Tensor,
    vocabulary: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> None:
    """Writes losses (n,) and lse (n,) fp32 of contiguous logits (n, PADDED), and the gradients into dlogits.

    dlogits may be the logits; with None no gradients are computed. Columns from `vocabulary` on are padding: the loss
    ignores them, and their gradients are 0.
    """
    rows, padded = logits.shape
    vector = 16 // logits.element_size()
    warp = 32 * LOADS_IN_FLIGHT * vector
    block = max(vector, min(MAX_WARPS * warp, triton.next_power_of_2(padded)))
    _cross_entropy[(rows,)](
        logits, dlogits, targets, row_weights, losses, lse, ignore_index, label_smoothing, z_loss,
        V=vocabulary, PADDED=padded, BLOCK=block, VECTOR=vector, SMOOTHED=label_smoothing > 0,
        num_warps=max(1, block // warp),
    )  # fmt: skip
