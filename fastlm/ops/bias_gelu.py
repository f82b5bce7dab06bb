"""GELU(x + bias), between the two linear layers of a feed-forward block."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from fastlm import backends
from fastlm.backends import ALL_DTYPES, KERNEL_DTYPES, SM80, Limits, Spec
from fastlm.ops import _checks
from fastlm.ops._cost import GELU, GELU_SLOPE, Cost
from fastlm.ops._register import Direction, as_rows, autocast, define, empty_parameter_gradient, num_partials


def cost(rows: int, columns: int, element: int = 2) -> Cost:
    """Returns the cost for x (N, F).

    Forward bytes = element * 2 N F: reads x, writes y. Backward bytes = element * 3 N F: reads dy, x, writes dx.
    Forward operations: bias, GELU. Backward operations: both again, GELU's derivative, a product, dbias.
    """
    n = rows * columns
    return Cost(2 * element * n, (1 + GELU) * n, 3 * element * n, (1 + GELU + GELU_SLOPE + 2) * n)


SPEC = Spec(
    "bias_gelu",
    kernels="bias_gelu",
    limits={
        "reference": Limits(ALL_DTYPES),
        "cpu": Limits(ALL_DTYPES),
        "triton": Limits(KERNEL_DTYPES, chip=SM80),
        "cuda": Limits(KERNEL_DTYPES, chip=SM80),
    },
    cost=cost,
    # On an H200, 32768 x 3072 in bf16: 338 us in CUDA and 515 in Triton, whose erf takes more instructions.
    order={(9, "none"): ("cuda", "triton", "reference")},
)


class Output(NamedTuple):
    y: Tensor


class Gradients(NamedTuple):
    dx: Tensor
    dbias: Tensor


def bias_gelu(x: Tensor, bias: Tensor | None = None, *, approximate: str = "tanh", backend: str = "auto") -> Tensor:
    """Computes GELU(x + bias) (Hendrycks & Gimpel 2016, section 2).

    Args:
        x: (..., F) float32, float16, bfloat16 or float64.
        bias: (F,), the dtype of x or float32.
        approximate: "tanh", as in the code of GPT-1 and BERT, or "none", the exact erf form, as in Hugging Face's BERT.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        y of the shape and dtype of x.

    Raises:
        TypeError, ValueError: an argument's dtype, shape, device or value is wrong.
        RuntimeError: the backend asked for cannot serve the call.
    """
    (x,) = autocast(x)
    _checks.check_activation(SPEC.op, "x", x)
    _checks.check_parameter(SPEC.op, "bias", bias, x, x.shape[-1])
    _checks.check_approximation(SPEC.op, approximate)
    backend = backends.choose(SPEC, backend, backends.call_of(x, shape_class=approximate))
    return _call(x, bias, approximate, backend)


def _forward(x: Tensor, bias: Tensor | None, approximate: str, backend: str) -> Output:
    compute = backends.implementation(SPEC, backend, "bias_gelu_forward", _launch_forward)
    return Output(compute(as_rows(x), bias, approximate).view(x.shape))


def _launch_forward(launchers: Any, x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    """Launches the forward of GELU(x + bias), x (N, F)."""
    y = x.new_empty(x.shape)
    launchers.bias_gelu_forward(x, bias, y, approximate == "tanh")
    return y


def _backward(dy: Tensor, x: Tensor, bias: Tensor | None, approximate: str, backend: str) -> Gradients:
    compute = backends.implementation(SPEC, backend, "bias_gelu_backward", _launch_backward)
    dx, dbias = compute(as_rows(dy), as_rows(x), bias, approximate)
    return Gradients(dx.view(x.shape), dbias)


def _launch_backward(launchers: Any, dy: Tensor, x: Tensor, bias: Tensor | None, approximate: str) -> Gradients:
    """Launches the backward of GELU(x + bias), x (N, F)."""
    dx, dbias = gradients = _empty_gradients(x)
    # The programs divide the columns too, 256 per program.
    down = max(1, num_partials(x.shape[0], x.device) // math.ceil(x.shape[1] / 256))
    partials = dbias.new_empty(1, down, x.shape[1])
    launchers.bias_gelu_backward(dy, x, bias, dx, dbias, approximate == "tanh", partials)
    return gradients


def _empty_gradients(x: Tensor) -> Gradients:
    return Gradients(x.new_empty(x.shape), empty_parameter_gradient(x))


_call = define(
    SPEC.op,
    Direction(_forward, lambda a: Output(a.x.new_empty(a.x.shape))),
    Direction(_backward, lambda a: _empty_gradients(a.x)),
)
