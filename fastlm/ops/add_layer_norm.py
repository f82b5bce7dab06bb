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
    """x and residual (N, E) to y, statistics and, if kept, the sum; dy and the sum or y to ds and, with dropout, dx.

    bytes = element * (3 + keep_sum) N E + 8 N, backward element * (3 + dropout) N E + 8 N. Beside the layer norm the
    bias, the residual and dropout's factor are an operation each forward; dropout's factor and dbias backward.
    """
    n = rows * columns
    forward = (3 + keep_sum) * element * n + 8 * rows
    backward = (3 + dropout) * element * n + 8 * rows
    return Cost(forward, (NORM_FORWARD + 2 + dropout) * n, backward, (NORM_BACKWARD + 1 + dropout) * n)


SPEC = Spec("add_layer_norm", kernels="layer_norm", limits=NORM_LIMITS, cost=cost)


class Outputs(NamedTuple):
    """y and, if saved, the sum, of the shape of x; the statistics of the sum's rows."""

    y: Tensor
    sum: Tensor
    mean: Tensor
    rstd: Tensor


class Gradients(NamedTuple):
    """dx is empty where nothing is dropped: it is dresidual then."""

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
    eps: float = 1e-5,
    return_sum: bool = False,
    keep_sum: bool = True,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Computes LN(residual + dropout(x + bias)) over the last dimension (Vaswani et al. 2017, sections 3.1 and 5.4).

    Args:
        x, residual: (..., E), one dtype: float32, float16, bfloat16 (float64 on the reference backend).
        gamma, beta, bias: (E,), the dtype of x or float32. `bias` is that of the linear layer that made x.
        dropout_p: probability of dropping an element of x + bias, applied in steps of 1/256.
        seed: one int64 on the device of x, needed where dropout_p > 0.
        return_sum: also return residual + dropout(x + bias), for pre-LN models; gradients flow through both.
        keep_sum: whether the sum is kept for the backward. If False, the backward reads y instead, which is often kept
            anyway by what comes next: one (..., E) less in memory, for y's rounding divided by gamma in the
            gradients. Each |gamma| must then be at least 1/64 times the larger of 1 and |beta|.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        y of the shape and dtype of x, or (y, sum).

    Raises:
        TypeError, ValueError: an argument's dtype, shape, device or range is wrong. A gamma too small for
            keep_sum=False is found on the CPU; on a GPU, where looking would make the host wait, it is the
            device's error.
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
    if return_sum and not keep_sum:
        raise ValueError(f"{SPEC.op}: return_sum=True keeps the sum: give it or keep_sum=False, not both")
    backend = backends.choose(SPEC, backend, backends.call_of(x, width=x.shape[-1]))
    differentiable = wants_gradient(x, residual, gamma, beta, bias)
    save_sum, from_output = return_sum or (differentiable and keep_sum), differentiable and not keep_sum
    y, s, _, _ = _call(x, residual, bias, gamma, beta, seed, keep, eps, save_sum, from_output, backend)
    return (y, s) if return_sum else y


def _forward(
    x: Tensor,
    residual: Tensor,
    bias: Tensor | None,
    gamma: Tensor,
    beta: Tensor | None,
    seed: Tensor | None,
    keep: int,
    eps: float,
    save_sum: bool,
    from_output: bool,
    backend: str,
) -> Outputs:
    if from_output:
        _checks.check_invertible(SPEC.op, gamma, beta)
    compute = backends.implementation(SPEC, backend, "add_layer_norm_forward", _launch_forward)
    y, s, mean, rstd = compute(as_rows(x), as_rows(residual), bias, gamma, beta, seed, keep, eps, save_sum)
    return Outputs(y.view(x.shape), s.view(x.shape) if save_sum else s, mean, rstd)


def _launch_forward(
    launchers: Any,
    x: Tensor,
    residual: Tensor,
    bias: Tensor | None,
    gamma: Tensor,
    beta: Tensor | None,
    seed: Tensor | None,
    keep: int,
    eps: float,
    save_sum: bool,
) -> Outputs:
    """Launches LN(residual + dropout(x + bias)) of (N, E)."""
    y, s, mean, rstd = outputs = _empty_outputs(x, save_sum)
    launchers.add_layer_norm_forward(
        x, residual, bias, gamma, beta, seed, y, s if save_sum else None, mean, rstd, keep, eps
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
    keep: int,
    from_output: bool,
    backend: str,
) -> Gradients:
    """`saved` (..., E) is the sum, or y if `from_output`; dy or dsum may be missing."""
    dy = torch.zeros_like(saved) if dy is None else dy
    rows, statistics = as_rows(saved), (mean, rstd, gamma)
    if from_output:
        compute = backends.implementation(
            SPEC, backend, "add_layer_norm_backward_from_output", _launch_backward_from_output
        )
        ds, dx, *parameters = compute(as_rows(dy), rows, *statistics, beta, seed, keep)
    else:
        compute = backends.implementation(SPEC, backend, "add_layer_norm_backward", _launch_backward)
        dsum = None if dsum is None else as_rows(dsum)
        ds, dx, *parameters = compute(as_rows(dy), dsum, rows, *statistics, seed, keep)
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
    keep: int,
) -> Gradients:
    """Launches the gradients of LN(s) of (N, E), and of s by dsum."""
    gradients, outs = _rows_of_gradients(dy, keep)
    launchers.add_layer_norm_backward(dy, dsum, s, mean, rstd, gamma, seed, *outs)
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
    keep: int,
) -> Gradients:
    """Launches the gradients of LN(s) of (N, E), where y stands for s; the kernels need no mean."""
    gradients, outs = _rows_of_gradients(dy, keep)
    launchers.add_layer_norm_backward_from_output(dy, y, rstd, gamma, beta, seed, *outs)
    return gradients


def _rows_of_gradients(dy: Tensor, keep: int) -> tuple[Gradients, tuple[Any, ...]]:
    """Allocates the gradients of rows (N, E), and lists what launchers take from them on."""
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
