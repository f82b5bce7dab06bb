"""Layer norm over the last dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlm import backends, reference
from fastlm.ops import _checks
from fastlm.ops._register import as_rows, autocast, define, normalised, programs

OP = "layer_norm"


def layer_norm(
    x: Tensor, gamma: Tensor, beta: Tensor | None = None, *, eps: float = 1e-5, backend: str = "auto"
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * gamma + beta over the last dimension (Ba et al. 2016, equation 4).

    Args:
        x: (..., E) float32, float16, bfloat16 or float64.
        gamma, beta: (E,), the dtype of x or float32.
        backend: "auto", "reference", "triton" or "cuda".

    Returns:
        y of the shape and dtype of x.

    Raises:
        TypeError, ValueError: an argument's dtype, shape, device or range is wrong.
        RuntimeError: the backend asked for cannot serve the call.
    """
    (x,) = autocast(x)
    _checks.activation(OP, "x", x)
    for name, p in (("gamma", gamma), ("beta", beta)):
        _checks.parameter(OP, name, p, x, x.shape[-1])
    eps = _checks.epsilon(OP, eps)
    backend = backends.resolve(OP, backend, x.dtype, x.device.type, x.shape[-1])
    return torch.ops.fastlm.layer_norm(x, gamma, beta, eps, backend)[0]


def _forward(x: Tensor, gamma: Tensor, beta: Tensor | None, eps: float, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    if backend == "reference":
        y, mean, rstd = reference.layer_norm_forward(as_rows(x), gamma, beta, eps)
        return y.view(x.shape), mean, rstd
    y, mean, rstd = normalised(x)
    backends.launchers(backend, OP).layer_norm_forward(as_rows(x), gamma, beta, as_rows(y), mean, rstd, eps)
    return y, mean, rstd


def _backward(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    dy_rows, rows = as_rows(dy), as_rows(x)
    if backend == "reference":
        dx, dgamma, dbeta = reference.layer_norm_backward(dy_rows, rows, mean, rstd, gamma)
        return dx.view(x.shape), dgamma, dbeta
    dx, dgamma, dbeta = _gradients(x, mean, gamma)
    partials = mean.new_empty(2, programs(rows.shape[0], x.device), rows.shape[1])
    backends.launchers(backend, OP).layer_norm_backward(
        dy_rows, rows, mean, rstd, gamma, as_rows(dx), dgamma, dbeta, partials
    )
    return dx, dgamma, dbeta


def _gradients(x: Tensor, mean: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), *(mean.new_empty(gamma.shape) for _ in range(2))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, gamma, beta, _, ctx.backend = inputs
    ctx.save_for_backward(x, *output[1:], gamma)
    ctx.beta_dtype = None if beta is None else beta.dtype


def _autograd(ctx: Any, dy: Tensor, *_: None) -> tuple[Any, ...]:
    gamma = ctx.saved_tensors[-1]
    dx, dgamma, dbeta = torch.ops.fastlm.layer_norm_backward(dy, *ctx.saved_tensors, ctx.backend)
    return dx, dgamma.to(gamma.dtype), None if ctx.beta_dtype is None else dbeta.to(ctx.beta_dtype), None, None


define(
    "layer_norm(Tensor x, Tensor gamma, Tensor? beta, float eps, str backend) -> (Tensor y, Tensor mean, Tensor rstd)",
    _forward,
    lambda x, gamma, beta, eps, backend: normalised(x),
    backward=_autograd,
    setup_context=_setup_context,
)
define(
    "layer_norm_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor gamma, str backend) "
    "-> (Tensor dx, Tensor dgamma, Tensor dbeta)",
    _backward,
    lambda dy, x, mean, rstd, gamma, backend: _gradients(x, mean, gamma),
)
