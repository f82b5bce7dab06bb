"""The post-LN step: LN(residual + dropout(x + bias))."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlm import backends
from fastlm.backends import Spec
from fastlm.dropout import LEVELS, keep_count
from fastlm.ops import _checks
from fastlm.ops._cost import Cost
from fastlm.ops._norm import NORM_BACKWARD, NORM_FORWARD, NORM_LIMITS
from fastlm.ops._register import (
    Direction,
    as_rows,
    autocast,
    define,
    empty_parameter_gradient,
    empty_row_stats,
    num_partials,
    wants_gradient,
)


def cost(rows: int, columns: int, element: int = 2, *, dropout: bool = True, keep_sum: bool = True) -> Cost:
    """Returns the cost for x and residual (N, E).

    Forward bytes = element * (3 + keep_sum) N E + 8 N: reads x, residual, writes y, statistics and, if kept, the sum.
    Backward bytes = element * (3 + dropout) N E + 8 N: reads dy, the sum or y, statistics, writes ds and, with dropout,
    dx. Operations per element besides the layer norm: forward bias, residual, dropout's factor; backward dropout's
    factor, dbias.
    """
    n = rows * columns
    forward = (3 + keep_sum) * element * n + 8 * rows
    backward = (3 + dropout) * element * n + 8 * rows
    return Cost(forward, (NORM_FORWARD + 2 + dropout) * n, backward, (NORM_BACKWARD + 1 + dropout) * n)


SPEC = Spec("add_layer_norm", kernels="layer_norm", limits=NORM_LIMITS, cost=cost)


class Outputs(NamedTuple):
    """Holds y and the sum (empty unless saved), of the shape of x, and mean and rstd of the sum's rows."""

    y: Tensor
    sum: Tensor
    mean: Tensor
    rstd: Tensor


class Gradients(NamedTuple):
    """Holds the gradients. Without dropout dx is empty, because it equals dresidual."""

    dresidual: Tensor
    dx: Tensor
    dgamma: Tensor
    dbeta: Tensor
    dbias: Tensor


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    first_row: Tensor | None = None,
    eps: float = 1e-5,
    return_sum: bool = False,
    keep_sum: bool = True,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Computes LN(residual + dropout(x + bias)) over the last dimension (Vaswani et al. 2017, sections 3.1 and 5.4).

    Args:
        x, residual: (..., E), one dtype: float32, float16, bfloat16 (float64 on the reference and CPU backends).
        gamma, beta, bias: (E,), the dtype of x or float32. `bias` belongs to the linear layer whose output is x.
        dropout_p: probability of dropping an element of x + bias, applied in steps of 1/256.
        seed: one int64 on the device of x, needed if dropout_p > 0.
        first_row: the index of the first row of x in the whole batch, one int64 on the device of x, by default 0. With
            it, the parts of a batch draw the same masks as the whole batch would.
        return_sum: also return residual + dropout(x + bias), for pre-LN models; gradients flow through both.
        keep_sum: whether the sum is kept for the backward. If False, the backward reads y instead, which the next layer
            often keeps anyway. This saves one (..., E) of memory, but the gradients then contain the rounding error of
            y divided by gamma. Each |gamma| must be at least 1/64 times the larger of 1 and |beta|.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        y of the shape and dtype of x, or (y, sum).

    Raises:
        TypeError, ValueError: an argument's dtype, shape, device or range is wrong. On a GPU the host does not wait, so
            a gamma that is too small for keep_sum=False is an error of the device there.
        RuntimeError: the backend asked for cannot serve the call.
    """
    keep = keep_count(_checks.as_number(SPEC.op, "dropout_p", dropout_p))
    x, residual = autocast(x, residual)
    _checks.check_activation(SPEC.op, "x", x)
    _checks.check_activation(SPEC.op, "residual", residual, x)
    for name, p in (("gamma", gamma), ("beta", beta), ("bias", bias)):
        _checks.check_parameter(SPEC.op, name, p, x, x.shape[-1])
    eps = _checks.checked_eps(SPEC.op, eps)
    seed = _checks.checked_seed(SPEC.op, seed, keep, x)
    first_row = _checks.checked_first(SPEC.op, "first_row", first_row, keep, x)
    if return_sum and not keep_sum:
        raise ValueError(f"{SPEC.op}: return_sum=True keeps the sum: give it or keep_sum=False, not both")
    backend = backends.choose(SPEC, backend, backends.call_of(x, width=x.shape[-1]))
    differentiable = wants_gradient(x, residual, gamma, beta, bias)
    save_sum, from_output = return_sum or (differentiable and keep_sum), differentiable and not keep_sum
    y, s, _, _ = _call(x, residual, bias, gamma, beta, seed, first_row, keep, eps, save_sum, from_output, backend)
    return (y, s) if return_sum else y


def _forward(
    x: Tensor,
    residual: Tensor,
    bias: Tensor | None,
    gamma: Tensor,
    beta: Tensor | None,
    seed: Tensor | None,
    first_row: Tensor | None,
    keep: int,
    eps: float,
    save_sum: bool,
    from_output: bool,
    backend: str,
) -> Outputs:
    if from_output:
        _checks.check_invertible(SPEC.op, gamma, beta)
    compute = backends.implementation(SPEC, backend, "add_layer_norm_forward", _launch_forward)
    y, s, mean, rstd = compute(as_rows(x), as_rows(residual), bias, gamma, beta, seed, first_row, keep, eps, save_sum)
    return Outputs(y.view(x.shape), s.view(x.shape) if save_sum else s, mean, rstd)


def _launch_forward(
    launchers: Any,
    x: Tensor,
    residual: Tensor,
    bias: Tensor | None,
    gamma: Tensor,
    beta: Tensor | None,
    seed: Tensor | None,
    first_row: Tensor | None,
    keep: int,
    eps: float,
    save_sum: bool,
) -> Outputs:
    """Launches the forward of LN(residual + dropout(x + bias)), x (N, E)."""
    y, s, mean, rstd = outputs = _empty_outputs(x, save_sum)
    launchers.add_layer_norm_forward(
        x, residual, bias, gamma, beta, seed, first_row, y, s if save_sum else None, mean, rstd, keep, eps
    )
    return outputs


def _empty_outputs(x: Tensor, save_sum: bool) -> Outputs:
    y = x.new_empty(x.shape)
    return Outputs(y, y.new_empty(y.shape if save_sum else 0), empty_row_stats(x), empty_row_stats(x))


def _backward(
    dy: Tensor | None,
    dsum: Tensor | None,
    saved: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    beta: Tensor | None,
    seed: Tensor | None,
    first_row: Tensor | None,
    keep: int,
    from_output: bool,
    backend: str,
) -> Gradients:
    """Computes the gradients. `saved` (..., E) is the sum, or y if `from_output`. dy or dsum may be None."""
    dy = torch.zeros_like(saved) if dy is None else dy
    rows, statistics = as_rows(saved), (mean, rstd, gamma)
    if from_output:
        compute = backends.implementation(
            SPEC, backend, "add_layer_norm_backward_from_output", _launch_backward_from_output
        )
        ds, dx, *parameters = compute(as_rows(dy), rows, *statistics, beta, seed, first_row, keep)
    else:
        compute = backends.implementation(SPEC, backend, "add_layer_norm_backward", _launch_backward)
        dsum = None if dsum is None else as_rows(dsum)
        ds, dx, *parameters = compute(as_rows(dy), dsum, rows, *statistics, seed, first_row, keep)
    dx = dx.view(saved.shape) if keep < LEVELS else ds.new_empty(0)
    return Gradients(ds.view(saved.shape), dx, *parameters)


def _launch_backward(
    launchers: Any,
    dy: Tensor,
    dsum: Tensor | None,
    s: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    seed: Tensor | None,
    first_row: Tensor | None,
    keep: int,
) -> Gradients:
    """Launches the backward of y = LN(s), s (N, E). dsum is the gradient of s from its other uses."""
    gradients, outs = _empty_row_gradients(dy, keep)
    launchers.add_layer_norm_backward(dy, dsum, s, mean, rstd, gamma, seed, first_row, *outs)
    return gradients


def _launch_backward_from_output(
    launchers: Any,
    dy: Tensor,
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    beta: Tensor | None,
    seed: Tensor | None,
    first_row: Tensor | None,
    keep: int,
) -> Gradients:
    """Launches the backward of y = LN(s) (N, E) that reads y and not s. Its kernels do not use the mean."""
    gradients, outs = _empty_row_gradients(dy, keep)
    launchers.add_layer_norm_backward_from_output(dy, y, rstd, gamma, beta, seed, first_row, *outs)
    return gradients


def _empty_row_gradients(dy: Tensor, keep: int) -> tuple[Gradients, tuple[Any, ...]]:
    """Allocates the gradients of rows (N, E). Returns them, and the launchers' arguments that begin with ds."""
    ds, dx, *parameters = gradients = _empty_gradients(dy, keep)
    partials = parameters[0].new_empty(3, num_partials(dy.shape[0], dy.device), dy.shape[1])
    return gradients, (ds, dx if keep < LEVELS else None, *parameters, keep, partials)


def _empty_gradients(x: Tensor, keep: int) -> Gradients:
    dx = x.new_empty(x.shape if keep < LEVELS else 0)
    return Gradients(x.new_empty(x.shape), dx, *(empty_parameter_gradient(x) for _ in range(3)))


_call = define(
    SPEC.op,
    Direction(_forward, lambda a: _empty_outputs(a.x, a.save_sum)),
    Direction(_backward, lambda a: _empty_gradients(a.saved, a.keep)),
    save=lambda a, out: {"saved": out.y, "beta": a.beta} if a.from_output else {"saved": out.sum, "beta": None},
    finish=lambda gradients, a: gradients if a["keep"] < LEVELS else gradients._replace(dx=gradients.dresidual),
)
