"""GELU(LN(x)), for heads and models that normalise first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlm import backends, reference
from fastlm.ops import _checks
from fastlm.ops._register import as_rows, autocast, define, normalised, programs

OP = "layer_norm_gelu"


def layer_norm_gelu(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    *,
    approximate: str = "tanh",
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """GELU(LN(x)) over the last dimension.

    Args:
        x: (..., E) float32, float16, bfloat16 or float64.
        gamma, beta: (E,), the dtype of x or float32.
        approximate: "tanh" or "none", the exact erf form.
        backend: "auto", "reference", "triton" or "cuda".

    Returns:
        y of the shape and dtype of x.

    Raises:
        TypeError, ValueError: an argument's dtype, shape, device or value is wrong.
        RuntimeError: the backend asked for cannot serve the call.
    """
    (x,) = autocast(x)
    _checks.activation(OP, "x", x)
    for name, p in (("gamma", gamma), ("beta", beta)):
        _checks.parameter(OP, name, p, x, x.shape[-1])
    _checks.approximation(OP, approximate)
    eps = _checks.epsilon(OP, eps)
    backend = backends.resolve(OP, backend, x.dtype, x.device.type, x.shape[-1])
    return torch.ops.fastlm.layer_norm_gelu(x, gamma, beta, approximate, eps, backend)[0]


def _forward(
    x: Tensor, gamma: Tensor, beta: Tensor | None, approximate: str, eps: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    if backend == "reference":
        y, mean, rstd = reference.layer_norm_gelu_forward(as_rows(x), gamma, beta, approximate, eps)
        return y.view(x.shape), mean, rstd
    y, mean, rstd = normalised(x)
    backends.launchers(backend, OP).layer_norm_gelu_forward(
        as_rows(x), gamma, beta, as_rows(y), mean, rstd, approximate == "tanh", eps
    )
    return y, mean, rstd


def _backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    beta: Tensor | None,
    approximate: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dy_rows, rows = as_rows(dy), as_rows(x)
    if backend == "reference":
        dx, *parameters = reference.layer_norm_gelu_backward(dy_rows, rows, mean, rstd, gamma, beta, approximate)
        return dx.view(x.shape), *parameters
    dx, dgamma, dbeta = _gradients(x, mean, gamma)
    partials = mean.new_empty(2, programs(rows.shape[0], x.device), rows.shape[1])
    backends.launchers(backend, OP).layer_norm_gelu_backward(
        dy_rows, rows, mean, rstd, gamma, beta, as_rows(dx), dgamma, dbeta, approximate == "tanh", partials
    )
    return dx, dgamma, dbeta


def _gradients(x: Tensor, mean: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), *(mean.new_empty(gamma.shape) for _ in range(2))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, gamma, beta, ctx.approximate, _, ctx.backend = inputs
    ctx.save_for_backward(x, *output[1:], gamma, beta)


def _autograd(ctx: Any, dy: Tensor, *_: None) -> tuple[Any, ...]:
    gamma, beta = ctx.saved_tensors[-2:]
    dx, dgamma, dbeta = torch.ops.fastlm.layer_norm_gelu_backward(dy, *ctx.saved_tensors, ctx.approximate, ctx.backend)
    return dx, dgamma.to(gamma.dtype), None if beta is None else dbeta.to(beta.dtype), None, None, None


define(
    "layer_norm_gelu(Tensor x, Tensor gamma, Tensor? beta, str approximate, float eps, str backend) "
    "-> (Tensor y, Tensor mean, Tensor rstd)",
    _forward,
    lambda x, gamma, beta, approximate, eps, backend: normalised(x),
    backward=_autograd,
    setup_context=_setup_context,
)
define(
    "layer_norm_gelu_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor gamma, Tensor? beta, "
    "str approximate, str backend) -> (Tensor dx, Tensor dgamma, Tensor dbeta)",
    _backward,
    lambda dy, x, mean, rstd, gamma, beta, approximate, backend: _gradients(x, mean, gamma),
)
