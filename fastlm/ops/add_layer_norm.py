"""The post-LN step: LN(residual + dropout(x + bias))."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlm import backends, reference
from fastlm.dropout import LEVELS, keep_count
from fastlm.ops import _checks
from fastlm.ops._register import as_rows, autocast, define, programs, statistics, wants_gradient

OP = "add_layer_norm"


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
    """LN(residual + dropout(x + bias)) over the last dimension (Vaswani et al. 2017, sections 3.1 and 5.4).

    Args:
        x, residual: (..., E), one dtype: float32, float16, bfloat16 (float64 on the reference backend).
        gamma, beta, bias: (E,), the dtype of x or float32. `bias` is that of the linear layer that made x.
        dropout_p: probability of dropping an element of x + bias, applied in steps of 1/256.
        seed: one int64 on the device of x, needed where dropout_p > 0.
        return_sum: also return residual + dropout(x + bias), for pre-LN models; gradients flow through both.
        keep_sum: whether the sum is kept for the backward. If False, the backward reads y instead, which is often kept
            anyway by what comes next: one (..., E) less in memory, for y's rounding divided by gamma in the
            gradients. Each |gamma| must then be at least 1/64 times the larger of 1 and |beta|.
        backend: "auto", "reference", "triton" or "cuda".

    Returns:
        y of the shape and dtype of x, or (y, sum).

    Raises:
        TypeError, ValueError: an argument's dtype, shape, device or range is wrong. A gamma too small for
            keep_sum=False is found on the CPU; on a GPU, where looking would make the host wait, it is the
            device's error.
        RuntimeError: the backend asked for cannot serve the call.
    """
    keep = keep_count(_checks.number(OP, "dropout_p", dropout_p))
    x, residual = autocast(x, residual)
    _checks.activation(OP, "x", x)
    _checks.activation(OP, "residual", residual, x)
    for name, p in (("gamma", gamma), ("beta", beta), ("bias", bias)):
        _checks.parameter(OP, name, p, x, x.shape[-1])
    eps = _checks.epsilon(OP, eps)
    seed = _checks.seed(OP, seed, keep, x)
    if return_sum and not keep_sum:
        raise ValueError(f"{OP}: return_sum=True keeps the sum: give it or keep_sum=False, not both")
    backend = backends.resolve(OP, backend, x.dtype, x.device.type, x.shape[-1])
    differentiable = wants_gradient(x, residual, gamma, beta, bias)
    save_sum, from_output = return_sum or (differentiable and keep_sum), differentiable and not keep_sum
    y, s, _, _ = torch.ops.fastlm.add_layer_norm(
        x, residual, bias, gamma, beta, seed, keep, eps, save_sum, from_output, backend
    )
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if from_output:
        _checks.invertible(OP, gamma, beta)
    rows, residual_rows = as_rows(x), as_rows(residual)
    if backend == "reference":
        y, s, mean, rstd = reference.add_layer_norm_forward(rows, residual_rows, bias, gamma, beta, seed, keep, eps)
        return y.view(x.shape), s.view(x.shape) if save_sum else s.new_empty(0), mean, rstd
    y, s, mean, rstd = _outputs(x, save_sum)
    backends.launchers(backend, OP).add_layer_norm_forward(
        rows,
        residual_rows,
        bias,
        gamma,
        beta,
        seed,
        as_rows(y),
        as_rows(s) if save_sum else None,
        mean,
        rstd,
        keep,
        eps,
    )
    return y, s, mean, rstd


def _outputs(x: Tensor, save_sum: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = x.new_empty(x.shape)
    return y, y.new_empty(y.shape if save_sum else 0), statistics(x), statistics(x)


def _backward(
    dy: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`saved` (..., E) is the sum, or y if `from_output`."""
    dy, saved = as_rows(dy), as_rows(saved)
    dsum = None if dsum is None else as_rows(dsum)
    if backend == "reference":
        s = reference.sum_of_output(saved, mean, rstd, gamma, beta) if from_output else saved
        ds, dx, *parameters = reference.add_layer_norm_backward(dy, dsum, s, mean, rstd, gamma, seed, keep)
        return ds.to(dy.dtype), dx.to(dy.dtype) if keep < LEVELS else dy.new_empty(0), *parameters
    gradients = ds, dx, dgamma, dbeta, dbias = _gradients(dy, mean, keep)
    partials = mean.new_empty(3, programs(dy.shape[0], dy.device), dy.shape[1])
    outs = (ds, dx if keep < LEVELS else None, dgamma, dbeta, dbias, keep, partials)
    launchers = backends.launchers(backend, OP)
    if from_output:
        launchers.add_layer_norm_backward_from_output(dy, saved, rstd, gamma, beta, seed, *outs)
    else:
        launchers.add_layer_norm_backward(dy, dsum, saved, mean, rstd, gamma, seed, *outs)
    return gradients


def _gradients(dy: Tensor, mean: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx = dy.new_empty(dy.shape if keep < LEVELS else 0)
    return dy.new_empty(dy.shape), dx, *(mean.new_empty(dy.shape[-1]) for _ in range(3))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, bias, gamma, beta, seed, ctx.keep, _, _, ctx.from_output, ctx.backend = inputs
    y, s, mean, rstd = output
    saved = (y, mean, rstd, gamma, beta) if ctx.from_output else (s, mean, rstd, gamma, None)
    ctx.save_for_backward(*saved, seed)
    ctx.shape = x.shape
    ctx.dtypes = tuple(None if p is None else p.dtype for p in (bias, gamma, beta))


def _autograd(ctx: Any, dy: Tensor | None, dsum: Tensor | None, *_: None) -> tuple[Any, ...]:
    saved, *_ = ctx.saved_tensors
    dy = torch.zeros_like(saved) if dy is None else dy
    dsum = None if ctx.from_output else dsum  # of no elements
    ds, dx, dgamma, dbeta, dbias = torch.ops.fastlm.add_layer_norm_backward(
        dy, dsum, *ctx.saved_tensors, ctx.keep, ctx.from_output, ctx.backend
    )
    ds = ds.view(ctx.shape)
    dx = dx.view(ctx.shape) if ctx.keep < LEVELS else ds
    bias_dtype, gamma_dtype, beta_dtype = ctx.dtypes
    dbias = None if bias_dtype is None else dbias.to(bias_dtype)
    dbeta = None if beta_dtype is None else dbeta.to(beta_dtype)
    return dx, ds, dbias, dgamma.to(gamma_dtype), dbeta, *(None,) * 6


define(
    "add_layer_norm(Tensor x, Tensor residual, Tensor? bias, Tensor gamma, Tensor? beta, Tensor? seed, int keep, "
    "float eps, bool save_sum, bool from_output, str backend) -> (Tensor y, Tensor sum, Tensor mean, Tensor rstd)",
    _forward,
    lambda x, residual, bias, gamma, beta, seed, keep, eps, save_sum, from_output, backend: _outputs(x, save_sum),
    backward=_autograd,
    setup_context=_setup_context,
)
define(
    "add_layer_norm_backward(Tensor dy, Tensor? dsum, Tensor saved, Tensor mean, Tensor rstd, Tensor gamma, "
    "Tensor? beta, Tensor? seed, int keep, bool from_output, str backend) "
    "-> (Tensor ds, Tensor dx, Tensor dgamma, Tensor dbeta, Tensor dbias)",
    _backward,
    lambda dy, dsum, saved, mean, rstd, gamma, beta, seed, keep, from_output, backend: _gradients(
        dy.reshape(-1, dy.shape[-1]), mean, keep
    ),
)
