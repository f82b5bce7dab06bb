"""Limits, costs and outputs of all ops with a layer norm."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastlm.backends import ALL_DTYPES, KERNEL_DTYPES, SM80, Limits
from fastlm.ops._cost import Cost
from fastlm.ops._register import empty_parameter_gradient, empty_row_stats

# The kernels hold a whole row in registers, which bounds its length.
NORM_LIMITS = {
    "reference": Limits(ALL_DTYPES),
    "cpu": Limits(ALL_DTYPES),
    "triton": Limits(KERNEL_DTYPES, max_width=8192, chip=SM80),
    "cuda": Limits(KERNEL_DTYPES, max_width=8192, chip=SM80),
}

# Operations per element.
#
# forward    mean 1, centring 1, squares 2, rstd 1, gamma and beta 2
# backward   xhat 2, g = dy * gamma 1, the means of g and g * xhat 3, ds 4, dgamma 2, dbeta 1
NORM_FORWARD, NORM_BACKWARD = 7, 13


def norm_cost(rows: int, columns: int, element: int = 2, more_forward: int = 0, more_backward: int = 0) -> Cost:
    """Returns the cost of a layer norm of x (N, E), with `more_forward` and `more_backward` operations per element.

    Forward bytes = element * 2 N E + 8 N: reads x, writes y and the statistics.
    Backward bytes = element * 3 N E + 8 N: reads dy, x and the statistics, writes dx.
    """
    n = rows * columns
    forward, backward = 2 * element * n + 8 * rows, 3 * element * n + 8 * rows
    return Cost(forward, (NORM_FORWARD + more_forward) * n, backward, (NORM_BACKWARD + more_backward) * n)


class NormOutputs(NamedTuple):
    """The outputs of a layer norm: y of the shape of x, and mean and rstd of its rows (N,)."""

    y: Tensor
    mean: Tensor
    rstd: Tensor


class NormGradients(NamedTuple):
    """The gradients of a layer norm: dx of the shape of x, and dgamma and dbeta (E,), float32 (float64 for float64)."""

    dx: Tensor
    dgamma: Tensor
    dbeta: Tensor


def empty_norm_outputs(x: Tensor) -> NormOutputs:
    """Allocates the outputs of a layer norm of x (..., E)."""
    return NormOutputs(x.new_empty(x.shape), empty_row_stats(x), empty_row_stats(x))


def empty_norm_gradients(x: Tensor) -> NormGradients:
    """Allocates the gradients of a layer norm of x (..., E)."""
    return NormGradients(x.new_empty(x.shape), empty_parameter_gradient(x), empty_parameter_gradient(x))
