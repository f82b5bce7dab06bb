"""Layer norm over the last dimension."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastlm import backends
from fastlm.backends import Spec
from fastlm.ops import _checks
from fastlm.ops._norm import (
    NORM_LIMITS,
    NormGradients,
    NormOutputs,
    empty_norm_gradients,
    empty_norm_outputs,
    norm_cost,
)
from fastlm.ops._register import Direction, as_rows, autocast, define, num_partials

SPEC = Spec("layer_norm", kernels="layer_norm", limits=NORM_LIMITS, cost=norm_cost)


def layer_norm(
    x: Tensor, gamma: Tensor, beta: Tensor | None = None, *, eps: float = 1e-5, backend: str = "auto"
) -> Tensor:
    """Computes (x - mean) / sqrt(variance + eps) * gamma + beta over the last dimension (Ba et al. 2016, equation 4).

    Args:
        x: (..., E) float32, float16, bfloat16 or float64.
        gamma, beta: (E,), the dtype of x or float32.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        y of the shape and dtype of x.

    Raises:
        TypeError, ValueError: an argument's dtype, shape, device or range is wrong.
        RuntimeError: the backend asked for cannot serve the call.
    """
    (x,) = autocast(x)
    _checks.check_activation(SPEC.op, "x", x)
    for name, p in (("gamma", gamma), ("beta", beta)):
        _checks.check_parameter(SPEC.op, name, p, x, x.shape[-1])
    eps = _checks.checked_eps(SPEC.op, eps)
    backend = backends.choose(SPEC, backend, backends.call_of(x, width=x.shape[-1]))
    return _call(x, gamma, beta, eps, backend)[0]


def _forward(x: Tensor, gamma: Tensor, beta: Tensor | None, eps: float, backend: str) -> NormOutputs:
    compute = backends.implementation(SPEC, backend, "layer_norm_forward", _launch_forward)
    y, mean, rstd = compute(as_rows(x), gamma, beta, eps)
    return NormOutputs(y.view(x.shape), mean, rstd)


def _launch_forward(launchers: Any, x: Tensor, gamma: Tensor, beta: Tensor | None, eps: float) -> NormOutputs:
    """Launches the forward of LN(x), x (N, E)."""
    y, mean, rstd = outputs = empty_norm_outputs(x)
    launchers.layer_norm_forward(x, gamma, beta, y, mean, rstd, eps)
    return outputs


def _backward(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor, backend: str) -> NormGradients:
    compute = backends.implementation(SPEC, backend, "layer_norm_backward", _launch_backward)
    dx, dgamma, dbeta = compute(as_rows(dy), as_rows(x), mean, rstd, gamma)
    return NormGradients(dx.view(x.shape), dgamma, dbeta)


def _launch_backward(launchers: Any, dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor) -> NormGradients:
    """Launches the backward of LN(x), x (N, E)."""
    dx, dgamma, dbeta = gradients = empty_norm_gradients(x)
    partials = mean.new_empty(2, num_partials(x.shape[0], x.device), x.shape[1])
    launchers.layer_norm_backward(dy, x, mean, rstd, gamma, dx, dgamma, dbeta, partials)
    return gradients


_call = define(
    SPEC.op,
    Direction(_forward, lambda a: empty_norm_outputs(a.x)),
    Direction(_backward, lambda a: empty_norm_gradients(a.x)),
)
