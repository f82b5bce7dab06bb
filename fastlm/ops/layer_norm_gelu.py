"""GELU(LN(x))."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastlm import backends
from fastlm.backends import Spec
from fastlm.ops import _checks
from fastlm.ops._cost import GELU, GELU_SLOPE, Cost
from fastlm.ops._norm import (
    NORM_LIMITS,
    NormGradients,
    NormOutputs,
    empty_norm_gradients,
    empty_norm_outputs,
    norm_cost,
)
from fastlm.ops._register import Direction, as_rows, autocast, define, num_partials


def cost(rows: int, columns: int, element: int = 2) -> Cost:
    """Returns a layer norm's cost plus GELU. Backward: GELU's argument (2), GELU, its derivative, a product."""
    return norm_cost(rows, columns, element, GELU, 2 + GELU + GELU_SLOPE + 1)


SPEC = Spec("layer_norm_gelu", kernels="layer_norm_gelu", limits=NORM_LIMITS, cost=cost)


def layer_norm_gelu(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    *,
    approximate: str = "tanh",
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """Computes GELU(LN(x)) over the last dimension.

    Args:
        x: (..., E) float32, float16, bfloat16 or float64.
        gamma, beta: (E,), the dtype of x or float32.
        approximate: "tanh" or "none", the exact erf form.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        y of the shape and dtype of x.

    Raises:
        TypeError, ValueError: an argument's dtype, shape, device or value is wrong.
        RuntimeError: the backend asked for cannot serve the call.
    """
    (x,) = autocast(x)
    _checks.check_activation(SPEC.op, "x", x)
    for name, p in (("gamma", gamma), ("beta", beta)):
        _checks.check_parameter(SPEC.op, name, p, x, x.shape[-1])
    _checks.check_approximation(SPEC.op, approximate)
    eps = _checks.checked_eps(SPEC.op, eps)
    backend = backends.choose(SPEC, backend, backends.call_of(x, width=x.shape[-1]))
    return _call(x, gamma, beta, approximate, eps, backend)[0]


def _forward(x: Tensor, gamma: Tensor, beta: Tensor | None, approximate: str, eps: float, backend: str) -> NormOutputs:
    compute = backends.implementation(SPEC, backend, "layer_norm_gelu_forward", _launch_forward)
    y, mean, rstd = compute(as_rows(x), gamma, beta, approximate, eps)
    return NormOutputs(y.view(x.shape), mean, rstd)


def _launch_forward(
    launchers: Any, x: Tensor, gamma: Tensor, beta: Tensor | None, approximate: str, eps: float
) -> NormOutputs:
    """Launches the forward of GELU(LN(x)), x (N, E)."""
    y, mean, rstd = outputs = empty_norm_outputs(x)
    launchers.layer_norm_gelu_forward(x, gamma, beta, y, mean, rstd, approximate == "tanh", eps)
    return outputs


def _backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    beta: Tensor | None,
    approximate: str,
    backend: str,
) -> NormGradients:
    compute = backends.implementation(SPEC, backend, "layer_norm_gelu_backward", _launch_backward)
    dx, dgamma, dbeta = compute(as_rows(dy), as_rows(x), mean, rstd, gamma, beta, approximate)
    return NormGradients(dx.view(x.shape), dgamma, dbeta)


def _launch_backward(
    launchers: Any,
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    beta: Tensor | None,
    approximate: str,
) -> NormGradients:
    """Launches the backward of GELU(LN(x)), x (N, E)."""
    dx, dgamma, dbeta = gradients = empty_norm_gradients(x)
    partials = mean.new_empty(2, num_partials(x.shape[0], x.device), x.shape[1])
    launchers.layer_norm_gelu_backward(
        dy, x, mean, rstd, gamma, beta, dx, dgamma, dbeta, approximate == "tanh", partials
    )
    return gradients


_call = define(
    SPEC.op,
    Direction(_forward, lambda a: empty_norm_outputs(a.x)),
    Direction(_backward, lambda a: empty_norm_gradients(a.x)),
)
