"""Softmax cross-entropy of logits that are in memory.

The forward reads each logit once. The backward reads it again and writes its gradient; nothing but the logits is kept.
Where they come from a linear layer, `linear_cross_entropy` never holds them. Both ops have the same row kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastlm import backends
from fastlm.backends import ALL_DTYPES, KERNEL_DTYPES, SM80, Limits, Spec
from fastlm.ops import _checks
from fastlm.ops._cost import Cost
from fastlm.ops._register import Direction, define, wide_dtype
from fastlm.ops.linear_cross_entropy import checked_options, chunk_rows, divisor_of, launch_rows


def cost(rows: int, vocabulary: int, element: int = 2) -> Cost:
    """Returns the cost for logits (N, V) and int64 targets.

    Forward bytes = element * N V + 12 N: reads logits and targets, writes losses.
    Backward bytes = element * 2 N V + 12 N: reads logits, targets and the losses' gradients, writes dlogits.
    """
    logits = element * rows * vocabulary
    return Cost(logits + 12 * rows, 0, 2 * logits + 12 * rows, 0)


SPEC = Spec(
    "cross_entropy",
    kernels="linear_cross_entropy",
    limits={
        "reference": Limits(ALL_DTYPES),
        "cpu": Limits(ALL_DTYPES),
        "triton": Limits(KERNEL_DTYPES, chip=SM80),
        "cuda": Limits(KERNEL_DTYPES, chip=SM80),
    },
    cost=cost,
)


class Output(NamedTuple):
    losses: Tensor


class Gradients(NamedTuple):
    dlogits: Tensor


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    row_weights: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Computes the cross-entropy of softmax(logits) against targets (GPT-1 equation 1).

    The loss of a row is that of `linear_cross_entropy`, whose options these are. All arithmetic is float32 (float64 for
    float64), under autocast too.

    Args:
        logits: (..., V) float32, float16, bfloat16 or float64. They are not changed.
        targets: (...) int64 in [0, V) or equal to `ignore_index`. A row with `ignore_index` is ignored, even if its
            logits, its weight or its incoming gradient are NaN.
        row_weights: (...) float32 or the dtype of logits; without gradient.
        reduction: "mean" divides by the sum of the weights of the rows that are not ignored (if it is 0, the loss is
            0); "sum"; or "none".
        label_smoothing: in [0, 1].
        z_loss: at least 0.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        float32 (float64 for float64): a scalar, or the shape of targets for "none".

    Raises:
        TypeError, ValueError: an argument's dtype, shape, device or range is wrong. On a GPU the host does not wait:
            targets out of range make the loss NaN ("triton", "cuda") or are an error of the device ("reference").
        RuntimeError: the backend asked for cannot serve the call.
    """
    row = checked_options(
        SPEC.op, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing, z_loss=z_loss
    )
    _check(logits, targets, row_weights, row[0])
    backend = backends.choose(SPEC, backend, backends.call_of(logits))
    flat, weights = targets.reshape(-1), None if row_weights is None else row_weights.reshape(-1)
    losses = _call(logits.reshape(-1, logits.shape[-1]), flat, weights, *row, backend)
    if reduction == "none":
        return losses.view(targets.shape)
    return losses.sum() / divisor_of(flat, weights, row[0], reduction, losses)


def _check(logits: Tensor, targets: Tensor, row_weights: Tensor | None, ignore_index: int) -> None:
    _checks.check_activation(SPEC.op, "logits", logits)
    _checks.check_integers(SPEC.op, "targets", targets, logits, logits.shape[:-1], torch.int64)
    _checks.check_range(SPEC.op, "targets", targets, 0, logits.shape[-1], ignore=ignore_index)
    if row_weights is not None:
        _checks.check_parameter(SPEC.op, "row_weights", row_weights, logits, *targets.shape)
        if row_weights.requires_grad:
            raise ValueError(f"{SPEC.op}: row_weights take no gradient; pass row_weights.detach()")


def _forward(
    logits: Tensor,
    targets: Tensor,
    row_weights: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    backend: str,
) -> Output:
    row = (ignore_index, label_smoothing, z_loss)
    return Output(_over_rows(logits, None, targets, row_weights, row, backend))


def _backward(
    dlosses: Tensor,
    logits: Tensor,
    targets: Tensor,
    row_weights: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    backend: str,
) -> Gradients:
    dlogits = torch.empty_like(logits)
    # A row's incoming gradient acts as its weight does: it multiplies the row's loss.
    weights = dlosses if row_weights is None else dlosses * row_weights
    _over_rows(logits, dlogits, targets, weights, (ignore_index, label_smoothing, z_loss), backend)
    return Gradients(dlogits)


def _over_rows(
    logits: Tensor,
    dlogits: Tensor | None,
    targets: Tensor,
    row_weights: Tensor | None,
    row: tuple[int, float, float],
    backend: str,
) -> Tensor:
    """Returns the losses (N,) of logits (N, V), and writes dlogits unless they are None."""
    rows, vocabulary = logits.shape
    if backend == "cuda" and logits.data_ptr() % 16:
        logits = logits.clone()  # a part of a tensor, say; the kernel's loads need the start aligned
    losses, lse = (logits.new_empty(rows, dtype=wide_dtype(logits)) for _ in range(2))
    launch = backends.implementation(SPEC, backend, "cross_entropy_rows", launch_rows)
    size = chunk_rows(rows, vocabulary, backend) if backend == "cpu" else max(rows, 1)
    for start in range(0, rows, size):
        chunk = slice(start, start + size)
        arrays = (None if x is None else x[chunk] for x in (logits, dlogits, targets, row_weights, losses, lse))
        launch(*arrays, vocabulary, *row)
    return losses


_call = define(
    SPEC.op,
    Direction(_forward, lambda a: Output(a.logits.new_empty(a.logits.shape[0], dtype=wide_dtype(a.logits)))),
    Direction(_backward, lambda a: Gradients(a.logits.new_empty(a.logits.shape))),
)
