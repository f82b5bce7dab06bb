"""Softmax cross-entropy of x W^T + bias against targets, without the (N, V) logits in memory at once.

The rows are processed in chunks. For each chunk a matrix product computes the logits, a row kernel computes the losses
and overwrites the logits with their gradient, and two more products compute the chunk's dx and its part of dW. If
gradients are needed, the forward computes and saves them in the same pass (three products instead of four); the
backward multiplies them by the incoming gradient. With reduction "none" each row has its own incoming gradient, so the
backward recomputes them.

The weight is copied once, in the dtype of x, and padded with rows of zeros to a multiple of 64: matrix
products of aligned sizes are several times as fast as those of 40478 or 30522, and rows of logits start at cache lines.
The CPU's backend reads the weight in place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlm import backends
from fastlm.backends import ALL_DTYPES, KERNEL_DTYPES, SM80, Limits, Spec
from fastlm.ops import _checks, _counted_rows
from fastlm.ops._cost import Cost
from fastlm.ops._register import (
    Direction,
    autocast,
    call,
    define_operator,
    differentiate,
    wants_gradient,
    wide_dtype,
    without_derivative,
)

REDUCTIONS = ("mean", "sum", "none")

# Logits in memory at a time. For GPT-1's vocabulary these are 5632 rows. The product of dx then has 44 x 3 tiles of
# 128 x 256: one wave on 132 SMs. The chunk is also long enough for the other two products.
CHUNK_LOGITS = 5632 * 40478

# On the CPU's backend a chunk's logits are 4 MiB, so that the passes over them stay in the caches, but at least 256
# rows: each chunk's products read or write all of W.
CPU_LOGITS, CPU_ROWS = 1 << 20, 256

PADDING = 64  # the columns of logits are padded to a multiple of this: 128 bytes in half precision


def cost(rows: int, columns: int, vocabulary: int, element: int = 2) -> Cost:
    """Returns the cost for x (N, E), W (V, E) in the dtype of x, and int64 targets.

    Forward bytes = element * (N E + V E) + 8 N + 4: reads x, W and targets, writes one loss. One product, 2 N E V.
    Backward bytes = element * (2 N E + V E) + 4 V E: reads x and W, writes dx and the fp32 dW. Two products, 4 N E V;
    the gradient of the logits is taken as given.
    """
    x, w = rows * columns, vocabulary * columns
    product = 2 * rows * columns * vocabulary
    return Cost(element * (x + w) + 8 * rows + 4, product, element * (2 * x + w) + 4 * w, 2 * product)


def row_cost(rows: int, vocabulary: int, element: int = 2) -> Cost:
    """Returns the cost of the row kernel alone, without products, for logits (N, V) and int64 targets.

    Bytes of the losses = element * N V + (8 + 4 + 4) N: reads logits and targets, writes losses and lse.
    Bytes of the gradients = element * N V, which overwrite the logits.
    """
    logits = element * rows * vocabulary
    return Cost(logits + 16 * rows, 0, logits, 0)


SPEC = Spec(
    "linear_cross_entropy",
    kernels="linear_cross_entropy",
    limits={
        "reference": Limits(ALL_DTYPES),
        "cpu": Limits(ALL_DTYPES),
        "triton": Limits(KERNEL_DTYPES, chip=SM80),
        "cuda": Limits(KERNEL_DTYPES, chip=SM80),
    },
    cost=cost,
)


class Outputs(NamedTuple):
    """Holds the loss () or (N,), lse (N,), the divisor (), and the gradients of the losses' sum (or empty tensors)."""

    loss: Tensor
    lse: Tensor
    divisor: Tensor
    dx: Tensor
    dw: Tensor
    dbias: Tensor


class Gradients(NamedTuple):
    """Holds the gradients. Those that are not needed are empty."""

    dx: Tensor
    dw: Tensor
    dbias: Tensor


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    row_weights: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    main_grad: Tensor | None = None,
    skip_ignored: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Computes the cross-entropy of softmax(x weight^T + bias) against targets (GPT-1 equations 1-2; BERT section 3.1).

    The loss of a row with logits l and lse = logsumexp(l) is
    w * ((1 - e) * (lse - l[target]) + e * (lse - mean(l)) + z * lse^2), or 0 if the target is ignored.
    The logits are rounded to the dtype of x. All later arithmetic is float32 (float64 for float64).

    Args:
        x: (..., E) float32, float16, bfloat16 or float64.
        weight: (V, E), the dtype of x or float32.
        bias: (V,), the dtype of x or float32.
        targets: (...) int64 in [0, V) or equal to `ignore_index`. A row with `ignore_index` is ignored, even if its x,
            its weight or its incoming gradient is NaN.
        row_weights: (...) float32, w; without gradient.
        reduction: "mean" divides by the sum of the weights of the rows that are not ignored (if it is 0, the loss is
            0); "sum"; or "none".
        label_smoothing: e in [0, 1].
        z_loss: z >= 0.
        main_grad: (V, E) float32, to which the gradient of `weight` is added; `weight.grad` stays unchanged.
        skip_ignored: whether ignored rows take no products. It pays if most rows are ignored, as in a masked LM. This
            holds on a CPU, and in bfloat16 on GPUs of compute capability 9; elsewhere all rows are computed. The host
            does not wait for a GPU.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        float32 (float64 for float64): a scalar, or the shape of targets for "none".

    Raises:
        TypeError, ValueError: an argument's dtype, shape, device or range is wrong. On a GPU the host does not wait:
            targets out of range make the loss NaN ("triton", "cuda") or are an error of the device ("reference").
        RuntimeError: the backend asked for cannot serve the call.
    """
    (x,) = autocast(x)
    ignore_index, label_smoothing, z_loss = checked_options(
        SPEC.op, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing, z_loss=z_loss
    )
    _check(x, weight, targets, bias, row_weights, ignore_index)
    if main_grad is not None:
        _checks.check_parameter(SPEC.op, "main_grad", main_grad, x, *weight.shape)
    backend = backends.choose(SPEC, backend, backends.call_of(x))
    loss, _, _, _, _, _ = _call(
        x.reshape(-1, x.shape[-1]),
        weight,
        bias,
        targets.reshape(-1),
        None if row_weights is None else row_weights.reshape(-1),
        main_grad,
        ignore_index,
        reduction,
        label_smoothing,
        z_loss,
        wants_gradient(x),
        wants_gradient(weight),
        wants_gradient(bias),
        bool(skip_ignored),
        backend,
    )
    return loss.view(targets.shape) if reduction == "none" else loss


def checked_options(
    op: str, *, ignore_index: int, reduction: str, label_smoothing: float, z_loss: float
) -> tuple[int, float, float]:
    """Checks the options, and returns ignore_index, label_smoothing and z_loss as Python numbers."""
    ignore_index = _checks.as_integer(op, "ignore_index", ignore_index)
    label_smoothing, z_loss = (
        _checks.as_number(op, name, value) for name, value in (("label_smoothing", label_smoothing), ("z_loss", z_loss))
    )
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"{op}: label_smoothing must be in [0, 1], got {label_smoothing}")
    if not z_loss >= 0.0:
        raise ValueError(f"{op}: z_loss must be at least 0, got {z_loss}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"{op}: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    return ignore_index, label_smoothing, z_loss


def _check(
    x: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, row_weights: Tensor | None, ignore_index: int
) -> None:
    _checks.check_activation(SPEC.op, "x", x)
    _checks.check_tensor(SPEC.op, "weight", weight, "a tensor of shape (V, E)")
    if weight.ndim != 2:
        raise ValueError(f"{SPEC.op}: weight must have shape (V, E), got {tuple(weight.shape)}")
    _checks.check_parameter(SPEC.op, "weight", weight, x, weight.shape[0], x.shape[-1])
    _checks.check_parameter(SPEC.op, "bias", bias, x, weight.shape[0])
    _checks.check_integers(SPEC.op, "targets", targets, x, x.shape[:-1], torch.int64)
    _checks.check_range(SPEC.op, "targets", targets, 0, weight.shape[0], ignore=ignore_index)
    if row_weights is not None:
        _checks.check_parameter(SPEC.op, "row_weights", row_weights, x, *targets.shape)
        if row_weights.requires_grad:
            raise ValueError(f"{SPEC.op}: row_weights take no gradient; pass row_weights.detach()")


def chunk_rows(rows: int, vocabulary: int, backend: str) -> int:
    """Returns the number of rows of a chunk.

    It is a function of the shape and the backend alone, so that a resumed run is bitwise the same.
    """
    least, logits = (CPU_ROWS, CPU_LOGITS) if backend == "cpu" else (128, CHUNK_LOGITS)
    return max(1, min(rows, max(least, logits // vocabulary // 128 * 128)))


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weights: Tensor | None,
    main_grad: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    need_dx: bool,
    need_dw: bool,
    need_dbias: bool,
    skip_ignored: bool,
    backend: str,
) -> Outputs:
    later = reduction == "none"
    need = tuple(n and not later for n in (need_dx, need_dw, need_dbias))
    row = (ignore_index, label_smoothing, z_loss)
    compute = _over_counted_rows if skip_ignored else _over_all_rows
    losses, lse, dx, dw, dbias = compute(x, weight, bias, targets, row_weights, row, need, backend)
    divisor = divisor_of(targets, row_weights, ignore_index, reduction, losses)
    loss = losses if later else losses.sum() / divisor
    return Outputs(loss, lse, divisor, dx, dw, dbias)


def divisor_of(
    targets: Tensor, row_weights: Tensor | None, ignore_index: int, reduction: str, losses: Tensor
) -> Tensor:
    """Returns the divisor of the losses' sum and of its gradients."""
    if reduction != "mean":
        return losses.new_ones(())
    counted = targets != ignore_index
    total = (counted.to(losses.dtype) if row_weights is None else row_weights.to(losses.dtype).where(counted, 0)).sum()
    return torch.where(total == 0, torch.inf, total)


def _over_all_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weights: Tensor | None,
    row: tuple[int, float, float],
    need: tuple[bool, bool, bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns losses, lse and the gradients of the losses' sum. Gradients that are not needed are empty."""
    w, b = _padded_parameters(x, weight, bias, backend)
    products = _counted_rows.AllRows(w, b, chunk_rows(x.shape[0], weight.shape[0], backend))
    return _over_chunks(products, x, weight.shape[0], targets, row_weights, row, need, backend)


def _over_counted_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weights: Tensor | None,
    row: tuple[int, float, float],
    need: tuple[bool, bool, bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns what `_over_all_rows` returns, from products of the rows that are not ignored."""
    grouped = _counted_rows.has_grouped_products(x, backend)
    if x.device.type != "cpu" and not grouped:
        return _over_all_rows(x, weight, bias, targets, row_weights, row, need, backend)
    order = _counted_rows.counted_first(targets, row[0])
    some, some_targets = x.index_select(0, order), targets.index_select(0, order)
    weights = None if row_weights is None else row_weights.index_select(0, order)
    compute = _over_grouped_rows if grouped else _over_all_rows
    losses, lse, dx, *rest = compute(some, weight, bias, some_targets, weights, row, need, backend)
    losses, lse = (values.new_zeros(targets.shape).index_copy_(0, order, values) for values in (losses, lse))
    if need[0]:
        dx = torch.zeros_like(x).index_copy_(0, order, dx).masked_fill_((targets == row[0])[:, None], 0.0)
    return losses, lse, dx, *rest


def _over_grouped_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weights: Tensor | None,
    row: tuple[int, float, float],
    need: tuple[bool, bool, bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns what `_over_all_rows` returns, for rows whose ignored ones are at the end; dx is undefined in those."""
    (rows, columns), vocabulary = x.shape, weight.shape[0]
    x, w = _counted_rows.with_bias_column(x, *_padded_parameters(x, weight, bias, backend))
    count = (targets != row[0]).sum(dtype=torch.int32)
    products = _counted_rows.CountedRows(w, count, rows, chunk_rows(rows, vocabulary, backend))
    need_dw = need[1] or need[2]  # the bias is a column of w
    of_rows = _over_chunks(products, x, vocabulary, targets, row_weights, row, (need[0], need_dw, False), backend)
    losses, lse, dx, dw, dbias = of_rows
    dx = dx[:, :columns] if need[0] else dx
    if need[2]:
        dbias = dw[:, columns].contiguous()
    return losses, lse, dx, dw[:, :columns].contiguous() if need[1] else dbias.new_empty(0), dbias


def _over_chunks(
    products: _counted_rows.AllRows | _counted_rows.CountedRows,
    x: Tensor,
    vocabulary: int,
    targets: Tensor,
    row_weights: Tensor | None,
    row: tuple[int, float, float],
    need: tuple[bool, bool, bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns losses, lse and the gradients of the losses' sum. Gradients that are not needed are empty."""
    need_dx, need_dw, need_dbias = need
    rows, padded = x.shape[0], products.w.shape
    losses, lse = (x.new_empty(rows, dtype=wide_dtype(x)) for _ in range(2))
    dx = torch.empty_like(x) if need_dx else x.new_empty(0)
    dw = losses.new_zeros(padded) if need_dw else losses.new_empty(0)
    dbias = losses.new_zeros(padded[0]) if need_dbias else losses.new_empty(0)
    launch = backends.implementation(SPEC, backend, "cross_entropy_rows", launch_rows)
    size = chunk_rows(rows, vocabulary, backend)
    for start in range(0, rows, size):
        chunk = slice(start, min(start + size, rows))
        x_chunk = _zeroed(x[chunk], targets[chunk] == row[0], backend)
        logits = products.logits(x_chunk, start)
        launch(
            logits,
            logits if any(need) else None,
            targets[chunk],
            None if row_weights is None else row_weights[chunk],
            losses[chunk],
            lse[chunk],
            vocabulary,
            *row,
        )
        if need_dx:
            products.store_dx(dx[chunk], logits, start)
        if need_dw:
            products.add_dw(dw, logits, x_chunk, start)
        if need_dbias:
            dbias += logits.sum(0, dtype=dbias.dtype)
        del logits  # grouped products have no `out`: the next chunk's logits take its place
    return losses, lse, dx, dw[:vocabulary], dbias[:vocabulary]


def _zeroed(x: Tensor, ignored: Tensor, backend: str) -> Tensor:
    """Returns x (n, E) with zeros in the ignored rows: a gradient of 0 times a NaN there would be NaN in dw."""
    if backend == "cpu" and not ignored.any():
        return x
    return x.masked_fill(ignored[:, None], 0.0)


def _padded_parameters(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> tuple[Tensor, Tensor | None]:
    """Returns W and the bias in the dtype of x, with the rows that the backend adds."""
    multiple = 1 if backend == "cpu" else PADDING
    w = _padded(weight, x.dtype, multiple)
    return w, None if bias is None else _padded(bias, x.dtype, multiple)


def _padded(parameter: Tensor, dtype: torch.dtype, multiple: int) -> Tensor:
    """Returns `parameter` in `dtype` with zeros behind it, up to a multiple of `multiple` rows."""
    rows = -(-parameter.shape[0] // multiple) * multiple
    if rows == parameter.shape[0]:
        return parameter.to(dtype)
    padded = parameter.new_empty(rows, *parameter.shape[1:], dtype=dtype)
    padded[: parameter.shape[0]] = parameter
    padded[parameter.shape[0] :] = 0
    return padded


def launch_rows(launchers: Any, *arguments: Any) -> None:
    """Launches the row kernel. Its arguments are those of `reference.cross_entropy_rows`."""
    launchers.cross_entropy_rows(*arguments)


def _empty_outputs(a: Any) -> Outputs:
    now = a.reduction != "none"
    lse = a.x.new_empty(a.x.shape[0], dtype=wide_dtype(a.x))
    gradients = _empty_gradients(a, *(now and need for need in (a.need_dx, a.need_dw, a.need_dbias)))
    return Outputs(lse.new_empty(() if now else lse.shape), lse, lse.new_empty(()), *gradients)


def _empty_gradients(a: Any, need_dx: bool, need_dw: bool, need_dbias: bool) -> Gradients:
    wide = wide_dtype(a.x)
    return Gradients(
        a.x.new_empty(a.x.shape if need_dx else 0),
        a.x.new_empty(a.weight.shape if need_dw else 0, dtype=wide),
        a.x.new_empty(a.weight.shape[0] if need_dbias else 0, dtype=wide),
    )


def _backward(
    dlosses: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weights: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    need_dx: bool,
    need_dw: bool,
    need_dbias: bool,
    skip_ignored: bool,
    backend: str,
) -> Gradients:
    need, row = (need_dx, need_dw, need_dbias), (ignore_index, label_smoothing, z_loss)
    # A row's incoming gradient acts as its weight does: it multiplies the row's loss.
    weights = dlosses if row_weights is None else dlosses * row_weights
    compute = _over_counted_rows if skip_ignored else _over_all_rows
    return Gradients(*compute(x, weight, bias, targets, weights, row, need, backend)[2:])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, targets, row_weights, main_grad, ignore_index, reduction, *rest = inputs
    label_smoothing, z_loss, *need, ctx.skip_ignored, ctx.backend = rest
    ctx.row, ctx.need, ctx.recompute = (ignore_index, label_smoothing, z_loss), need, reduction == "none"
    ctx.dtypes = weight.dtype, weight.dtype if bias is None else bias.dtype
    if ctx.recompute:
        ctx.save_for_backward(main_grad, x, weight, bias, targets, row_weights)
    else:
        ctx.save_for_backward(main_grad, *output[2:])


def _autograd(ctx: Any, dloss: Tensor, *_: Tensor | None) -> tuple[Any, ...]:
    main_grad, *saved = ctx.saved_tensors
    if ctx.recompute:
        factor = dloss.new_ones(())
        gradients = call(
            "linear_cross_entropy_backward", dloss, *saved, *ctx.row, *ctx.need, ctx.skip_ignored, ctx.backend
        )
    else:
        divisor, *gradients = saved
        factor = dloss / divisor
    dx, dw, dbias = gradients
    need_dx, need_dw, need_dbias = ctx.need
    if need_dw and main_grad is not None:
        torch.ops.fastlm.linear_cross_entropy_accumulate(main_grad, dw, factor)
        need_dw, dw = False, dw.new_empty(0)
    dx, dw, dbias = call("linear_cross_entropy_scale", factor, dx, dw, dbias, *ctx.dtypes)
    return dx if need_dx else None, dw if need_dw else None, dbias if need_dbias else None, *[None] * 12


def _scaled(
    factor: Tensor, dx: Tensor, dw: Tensor, dbias: Tensor, weight_dtype: torch.dtype, bias_dtype: torch.dtype
) -> Gradients:
    """Multiplies the saved gradients by the incoming gradient of the loss.

    Autograd takes the saved gradients as constants, so a second derivative would be wrong. This is an op without a
    derivative, so that a second derivative raises an error instead.
    """
    factor = factor.view(1)  # CUDA would round a tensor without dimensions to the dtype of dx first
    dtypes = zip((dx, dw, dbias), (dx.dtype, weight_dtype, bias_dtype), strict=True)
    return Gradients(*(torch.mul(g, factor, out=g.new_empty(g.shape, dtype=dtype)) for g, dtype in dtypes))


def _accumulate(main_grad: Tensor, dw: Tensor, factor: Tensor) -> None:
    main_grad.addcmul_(dw, factor)


define_operator(SPEC.op, Direction(_forward, _empty_outputs, strided=("main_grad",)))
define_operator(
    "linear_cross_entropy_backward",
    Direction(_backward, lambda a: _empty_gradients(a, a.need_dx, a.need_dw, a.need_dbias)),
)
define_operator("linear_cross_entropy_accumulate", Direction(_accumulate, lambda a: None), mutates=("main_grad",))
define_operator(
    "linear_cross_entropy_scale",
    Direction(
        _scaled,
        lambda a: Gradients(
            a.dx.new_empty(a.dx.shape),
            a.dw.new_empty(a.dw.shape, dtype=a.weight_dtype),
            a.dbias.new_empty(a.dbias.shape, dtype=a.bias_dtype),
        ),
    ),
)
_call = differentiate(SPEC.op, _setup_context, _autograd)
without_derivative("linear_cross_entropy_backward")
without_derivative("linear_cross_entropy_scale")
