"""LN(GELU(x + bias)), the transform of BERT's masked-LM head."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from fastlm import backends
from fastlm.backends import Spec
from fastlm.ops import _checks
from fastlm.ops._cost import GELU, GELU_SLOPE, Cost
from fastlm.ops._norm import NORM_LIMITS, NormOutputs, empty_norm_outputs, norm_cost
from fastlm.ops._register import Direction, as_rows, autocast, define, empty_parameter_gradient, num_partials


def cost(rows: int, columns: int, element: int = 2) -> Cost:
    """Returns a layer norm's cost plus bias, GELU. Backward: both again, GELU's derivative, a product, dbias."""
    return norm_cost(rows, columns, element, 1 + GELU, 1 + GELU + GELU_SLOPE + 2)


SPEC = Spec("gelu_layer_norm", kernels="gelu_layer_norm", limits=NORM_LIMITS, cost=cost)


class Gradients(NamedTuple):
    dx: Tensor
    dbias: Tensor
    dgamma: Tensor
    dbeta: Tensor


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
    """Computes LN(GELU(x + bias)) over the last dimension (BERT, appendix A.2 and the original code's masked-LM head).

    Args:
        x: (..., E) float32, float16, bfloat16 or float64.
        gamma, beta, bias: (E,), the dtype of x or float32.
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
    for name, p in (("gamma", gamma), ("beta", beta), ("bias", bias)):
        _checks.check_parameter(SPEC.op, name, p, x, x.shape[-1])
    _checks.check_approximation(SPEC.op, approximate)
    eps = _checks.checked_eps(SPEC.op, eps)
    backend = backends.choose(SPEC, backend, backends.call_of(x, width=x.shape[-1]))
    return _call(x, bias, gamma, beta, approximate, eps, backend)[0]


def _forward(
    x: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor | None, approximate: str, eps: float, backend: str
) -> NormOutputs:
    compute = backends.implementation(SPEC, backend, "gelu_layer_norm_forward", _launch_forward)
    y, mean, rstd = compute(as_rows(x), bias, gamma, beta, approximate, eps)
    return NormOutputs(y.view(x.shape), mean, rstd)


def _launch_forward(
    launchers: Any, x: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor | None, approximate: str, eps: float
) -> NormOutputs:
    """Launches the forward of LN(GELU(x + bias)), x (N, E)."""
    y, mean, rstd = outputs = empty_norm_outputs(x)
    launchers.gelu_layer_norm_forward(x, bias, gamma, beta, y, mean, rstd, approximate == "tanh", eps)
    return outputs


def _backward(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    approximate: str,
    backend: str,
) -> Gradients:
    compute = backends.implementation(SPEC, backend, "gelu_layer_norm_backward", _launch_backward)
    dx, *parameters = compute(as_rows(dy), as_rows(x), bias, mean, rstd, gamma, approximate)
    return Gradients(dx.view(x.shape), *parameters)


def _launch_backward(
    launchers: Any,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    approximate: str,
) -> Gradients:
    """Launches the backward of LN(GELU(x + bias)), x (N, E)."""
    dx, dbias, dgamma, dbeta = gradients = _empty_gradients(x)
    partials = mean.new_empty(3, num_partials(x.shape[0], x.device), x.shape[1])
    launchers.gelu_layer_norm_backward(
        dy, x, bias, mean, rstd, gamma, dx, dgamma, dbeta, dbias, approximate == "tanh", partials
    )
    return gradients


def _empty_gradients(x: Tensor) -> Gradients:
    return Gradients(x.new_empty(x.shape), *(empty_parameter_gradient(x) for _ in range(3)))


_call = define(
    SPEC.op,
    Direction(_forward, lambda a: empty_norm_outputs(a.x)),
    Direction(_backward, lambda a: _empty_gradients(a.x)),
)
