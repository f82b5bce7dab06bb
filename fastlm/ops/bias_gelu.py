"""GELU(x + bias), between the two linear layers of a feed-forward block."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastlm import backends, reference
from fastlm.ops import _checks
from fastlm.ops._register import as_rows, autocast, define, programs, wide_dtype

OP = "bias_gelu"


def bias_gelu(x: Tensor, bias: Tensor | None = None, *, approximate: str = "tanh", backend: str = "auto") -> Tensor:
    """GELU(x + bias) (Hendrycks & Gimpel 2016, section 2).

    Args:
        x: (..., F) float32, float16, bfloat16 or float64.
        bias: (F,), the dtype of x or float32.
        approximate: "tanh", both papers' code, or "none", the exact erf form of Hugging Face's BERT.
        backend: "auto", "reference", "triton" or "cuda".

    Returns:
        y of the shape and dtype of x.

    Raises:
        TypeError, ValueError: an argument's dtype, shape, device or value is wrong.
        RuntimeError: the backend asked for cannot serve the call.
    """
    (x,) = autocast(x)
    _checks.activation(OP, "x", x)
    _checks.parameter(OP, "bias", bias, x, x.shape[-1])
    _checks.approximation(OP, approximate)
    backend = backends.resolve(OP, backend, x.dtype, x.device.type)
    return torch.ops.fastlm.bias_gelu(x, bias, approximate, backend)


def _forward(x: Tensor, bias: Tensor | None, approximate: str, backend: str) -> Tensor:
    if backend == "reference":
        return reference.bias_gelu_forward(as_rows(x), bias, approximate).view(x.shape)
    y = x.new_empty(x.shape)
    backends.launchers(backend, OP).bias_gelu_forward(as_rows(x), bias, as_rows(y), approximate == "tanh")
    return y


def _backward(dy: Tensor, x: Tensor, bias: Tensor | None, approximate: str, backend: str) -> tuple[Tensor, Tensor]:
    dy_rows, rows = as_rows(dy), as_rows(x)
    if backend == "reference":
        dx, dbias = reference.bias_gelu_backward(dy_rows, rows, bias, approximate)
        return dx.view(x.shape), dbias
    dx, dbias = _gradients(x)
    # Programs share the columns too, 256 to each.
    down = max(1, programs(rows.shape[0], x.device) // math.ceil(rows.shape[1] / 256))
    partials = dbias.new_empty(1, down, rows.shape[1])
    backends.launchers(backend, OP).bias_gelu_backward(
        dy_rows, rows, bias, as_rows(dx), dbias, approximate == "tanh", partials
    )
    return dx, dbias


def _gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[-1], dtype=wide_dtype(x))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, ctx.approximate, ctx.backend = inputs
    ctx.save_for_backward(x, bias)


def _autograd(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, bias = ctx.saved_tensors
    dx, dbias = torch.ops.fastlm.bias_gelu_backward(dy, x, bias, ctx.approximate, ctx.backend)
    return dx, None if bias is None else dbias.to(bias.dtype), None, None


define(
    "bias_gelu(Tensor x, Tensor? bias, str approximate, str backend) -> Tensor",
    _forward,
    lambda x, bias, approximate, backend: x.new_empty(x.shape),
    backward=_autograd,
    setup_context=_setup_context,
)
define(
    "bias_gelu_backward(Tensor dy, Tensor x, Tensor? bias, str approximate, str backend) -> (Tensor dx, Tensor dbias)",
    _backward,
    lambda dy, x, bias, approximate, backend: _gradients(x),
)
