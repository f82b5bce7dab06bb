"""LN(GELU(x + bias)), the transform of BERT's masked-LM head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlm import backends, reference
from fastlm.ops import _checks
from fastlm.ops._register import as_rows, autocast, define, normalised, programs

OP = "gelu_layer_norm"


def gelu_layer_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    approximate: str = "tanh",
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """LN(GELU(x + bias)) over the last dimension (BERT, appendix A.2 and the original code's masked-LM head).

    Args:
        x: (..., E) float32, float16, bfloat16 or float64.
        gamma, beta, bias: (E,), the dtype of x or float32.
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
    for name, p in (("gamma", gamma), ("beta", beta), ("bias", bias)):
        _checks.parameter(OP, name, p, x, x.shape[-1])
    _checks.approximation(OP, approximate)
    eps = _checks.epsilon(OP, eps)
    backend = backends.resolve(OP, backend, x.dtype, x.device.type, x.shape[-1])
    return torch.ops.fastlm.gelu_layer_norm(x, bias, gamma, beta, approximate, eps, backend)[0]


def _forward(
    x: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor | None, approximate: str, eps: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    if backend == "reference":
        y, mean, rstd = reference.gelu_layer_norm_forward(as_rows(x), bias, gamma, beta, approximate, eps)
        return y.view(x.shape), mean, rstd
    y, mean, rstd = normalised(x)
    backends.launchers(backend, OP).gelu_layer_norm_forward(
        as_rows(x), bias, gamma, beta, as_rows(y), mean, rstd, approximate == "tanh", eps
    )
    return y, mean, rstd


def _backward(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    approximate: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dy_rows, rows = as_rows(dy), as_rows(x)
    if backend == "reference":
        dx, *parameters = reference.gelu_layer_norm_backward(dy_rows, rows, bias, mean, rstd, gamma, approximate)
        return dx.view(x.shape), *parameters
    dx, dbias, dgamma, dbeta = _gradients(x, mean, gamma)
    partials = mean.new_empty(3, programs(rows.shape[0], x.device), rows.shape[1])
    backends.launchers(backend, OP).gelu_layer_norm_backward(
        dy_rows, rows, bias, mean, rstd, gamma, as_rows(dx), dgamma, dbeta, dbias, approximate == "tanh", partials
    )
    return dx, dbias, dgamma, dbeta


def _gradients(x: Tensor, mean: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), *(mean.new_empty(gamma.shape) for _ in range(3))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, bias, gamma, beta, ctx.approximate, _, ctx.backend = inputs
    ctx.save_for_backward(x, bias, *output[1:], gamma)
    ctx.beta_dtype = None if beta is None else beta.dtype


def _autograd(ctx: Any, dy: Tensor, *_: None) -> tuple[Any, ...]:
    _, bias, _, _, gamma = ctx.saved_tensors
    dx, dbias, dgamma, dbeta = torch.ops.fastlm.gelu_layer_norm_backward(
        dy, *ctx.saved_tensors, ctx.approximate, ctx.backend
    )
    dbias = None if bias is None else dbias.to(bias.dtype)
    dbeta = None if ctx.beta_dtype is None else dbeta.to(ctx.beta_dtype)
    return dx, dbias, dgamma.to(gamma.dtype), dbeta, None, None, None


define(
    "gelu_layer_norm(Tensor x, Tensor? bias, Tensor gamma, Tensor? beta, str approximate, float eps, str backend) "
    "-> (Tensor y, Tensor mean, Tensor rstd)",
    _forward,
    lambda x, bias, gamma, beta, approximate, eps, backend: normalised(x),
    backward=_autograd,
    setup_context=_setup_context,
)
define(
    "gelu_layer_norm_backward(Tensor dy, Tensor x, Tensor? bias, Tensor mean, Tensor rstd, Tensor gamma, "
    "str approximate, str backend) -> (Tensor dx, Tensor dbias, Tensor dgamma, Tensor dbeta)",
    _backward,
    lambda dy, x, bias, mean, rstd, gamma, approximate, backend: _gradients(x, mean, gamma),
)
