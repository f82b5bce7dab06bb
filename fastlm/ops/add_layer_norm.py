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
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """LN(residual + dropout(x + bias)) over the last dimension (Vaswani et al. 2017, sections 3.1 and 5.4).

    Args:
        x, residual: (..., E), one dtype: float32, float16, bfloat16 (float64 on the reference backend).
        gamma, beta, bias: (E,), the dtype of x or float32. `bias` is that of the linear layer that made x.
        dropout_p: probability of dropping an element of x + bias, applied in steps of 1/256.
        seed: one int64 on the device of x, needed where dropout_p > 0.
        return_sum: also return residual + dropout(x + bias), for pre-LN models; gradients flow through both.
        backend: "auto", "reference", "triton" or "cuda".

    Returns:
        y of the shape and dtype of x, or (y, sum).

    Raises:
        TypeError, ValueError: an argument's dtype, shape, device or range is wrong.
        RuntimeError: the backend asked for cannot serve the call.
    """
    keep = keep_count(dropout_p)
    x, residual = autocast(x, residual)
    _checks.activation(OP, "x", x)
    _checks.activation(OP, "residual", residual, x)
    for name, p in (("gamma", gamma), ("beta", beta), ("bias", bias)):
        _checks.parameter(OP, name, p, x, x.shape[-1])
    _checks.epsilon(OP, eps)
    seed = _checks.seed(OP, seed, keep, x)
    backend = backends.resolve(OP, backend, x.dtype, x.device.type)
    save_sum = return_sum or wants_gradient(x, residual, gamma, beta, bias)
    y, s, _, _ = torch.ops.fastlm.add_layer_norm(x, residual, bias, gamma, beta, seed, keep, eps, save_sum, backend)
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
    s: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    seed: Tensor | None,
    keep: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dy, s = as_rows(dy), as_rows(s)
    dsum = None if dsum is None else as_rows(dsum)
    if backend == "reference":
        gradients = reference.add_layer_norm_backward(dy, dsum, s, mean, rstd, gamma, seed, keep)
        return (gradients[0], gradients[1] if keep < LEVELS else s.new_empty(0), *gradients[2:])
    gradients = ds, dx, dgamma, dbeta, dbias = _gradients(s, mean, keep)
    partials = mean.new_empty(3, programs(s.shape[0], s.device), s.shape[1])
    backends.launchers(backend, OP).add_layer_norm_backward(
        dy, dsum, s, mean, rstd, gamma, seed, ds, dx if keep < LEVELS else None, dgamma, dbeta, dbias, keep, partials
    )
    return gradients


def _gradients(s: Tensor, mean: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx = torch.empty_like(s) if keep < LEVELS else s.new_empty(0)
    return torch.empty_like(s), dx, *(mean.new_empty(s.shape[-1]) for _ in range(3))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, bias, gamma, beta, seed, ctx.keep, _, _, ctx.backend = inputs
    _, s, mean, rstd = output
    ctx.save_for_backward(s, mean, rstd, gamma, seed)
    ctx.shape = x.shape
    ctx.dtypes = tuple(None if p is None else p.dtype for p in (bias, gamma, beta))


def _autograd(ctx: Any, dy: Tensor | None, dsum: Tensor | None, *_: None) -> tuple[Any, ...]:
    s, mean, rstd, gamma, seed = ctx.saved_tensors
    dy = torch.zeros_like(s) if dy is None else dy
    ds, dx, dgamma, dbeta, dbias = torch.ops.fastlm.add_layer_norm_backward(
        dy, dsum, s, mean, rstd, gamma, seed, ctx.keep, ctx.backend
    )
    ds = ds.view(ctx.shape)
    dx = dx.view(ctx.shape) if ctx.keep < LEVELS else ds
    bias_dtype, gamma_dtype, beta_dtype = ctx.dtypes
    dbias = None if bias_dtype is None else dbias.to(bias_dtype)
    dbeta = None if beta_dtype is None else dbeta.to(beta_dtype)
    return dx, ds, dbias, dgamma.to(gamma_dtype), dbeta, None, None, None, None, None


define(
    "add_layer_norm(Tensor x, Tensor residual, Tensor? bias, Tensor gamma, Tensor? beta, Tensor? seed, int keep, "
    "float eps, bool save_sum, str backend) -> (Tensor y, Tensor sum, Tensor mean, Tensor rstd)",
    _forward,
    lambda x, residual, bias, gamma, beta, seed, keep, eps, save_sum, backend: _outputs(x, save_sum),
    backward=_autograd,
    setup_context=_setup_context,
)
define(
    "add_layer_norm_backward(Tensor dy, Tensor? dsum, Tensor sum, Tensor mean, Tensor rstd, Tensor gamma, "
    "Tensor? seed, int keep, str backend) -> (Tensor ds, Tensor dx, Tensor dgamma, Tensor dbeta, Tensor dbias)",
    _backward,
    lambda dy, dsum, s, mean, rstd, gamma, seed, keep, backend: _gradients(s.view(-1, s.shape[-1]), mean, keep),
)
