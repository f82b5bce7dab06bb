"""AdamW with clipping by the global norm, over all parameters of a model: the gradients' squares, then the update."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlm import backends
from fastlm.backends import ALL_DTYPES, KERNEL_DTYPES, SM80, Limits, Spec
from fastlm.ops import _checks
from fastlm.ops._cost import Cost
from fastlm.ops._register import num_partials

OP = "adamw"
SLICE = 8192  # elements that a CTA or program processes at a time (csrc/adamw.cu, kernels/adamw.py)
TENSORS = 480  # maximum of tensors per launch of csrc/adamw.cu


def cost(elements: int, element: int = 4) -> Cost:
    """Returns the cost of one clipped update of n = `elements` parameters with fp32 moments. There is no backward.

    bytes = element * (2 + 2) n + 16 n: the gradients are read twice, parameters and moments are read and written.
    Operations: norm 2, scaling 1, moments 3 and 4, corrections 2, root, eps and division 3, decay 2, step 2.
    """
    return Cost((4 * element + 16) * elements, 19 * elements, 0, 0)


SPEC = Spec(
    OP,
    kernels="adamw",
    limits={
        "reference": Limits(ALL_DTYPES),
        "cpu": Limits(ALL_DTYPES),
        "triton": Limits(KERNEL_DTYPES, chip=SM80),
        "cuda": Limits(KERNEL_DTYPES, chip=SM80),
    },
    cost=cost,
)


@torch.no_grad()
def gradient_squares(gradients: Sequence[Tensor], *, backend: str = "auto") -> Tensor:
    """Sums the squares of all gradients together, in one launch.

    Args:
        gradients: contiguous, of any shapes and any mixture of float32, float16 and bfloat16 (float64 on the
            reference and CPU backends), on one device.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        squares: (K,) partial sums, float32 (float64 for float64), on the device; the host does not wait. Their sum is
        the square of the gradients' norm. K depends on the shapes, the device and the backend. A sharded run sums
        `squares.sum()` over its ranks and passes the result to `adamw`.

    Raises:
        TypeError, ValueError: a gradient's dtype, device or layout is wrong, or there is no gradient.
        RuntimeError: the backend asked for cannot serve the call.
    """
    if not gradients:
        raise ValueError(f"{OP}: at least one gradient expected, got none")
    for i, g in enumerate(gradients):
        _check_tensor(f"gradients[{i}]", g, gradients[0].device)
    dtype, device = _widest(gradients), gradients[0].device
    backend = backends.choose(SPEC, backend, backends.call_of(gradients[0], dtype=dtype))
    with _on(device):
        return backends.implementation(SPEC, backend, "gradient_squares", _launch_squares)(gradients)


def _launch_squares(launchers: Any, gradients: Sequence[Tensor]) -> Tensor:
    launches = -(-len(gradients) // TENSORS)
    size = launches * _num_ctas(gradients)
    squares = torch.empty(size, dtype=torch.float32, device=gradients[0].device)
    launchers.gradient_squares(list(gradients), squares)
    return squares


@torch.no_grad()
def adamw(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    *,
    rates: Tensor,
    decays: Tensor,
    betas: tuple[float, float],
    eps: float,
    corrections: Tensor | None = None,
    squares: Tensor | None = None,
    max_norm: Tensor | None = None,
    scale: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Updates n parameters in place (Loshchilov and Hutter 2019, algorithm 2) and returns the gradients' norm.

    With norm = scale * sqrt(sum(squares)) and g = gradient * scale * min(1, max_norm / norm),
    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p = (1 - lr decay) p - lr / c1 * m / (sqrt(v / c2) + eps).

    rates, decays, corrections, max_norm and scale are read from device memory. A captured CUDA graph of this call can
    therefore use other values: write them into the same tensors before the replay.

    Args:
        parameters, gradients: contiguous, of any shapes; a gradient has its parameter's shape and dtype: float32,
            float16 or bfloat16 (float64 on the reference and CPU backends); dtypes may differ from parameter to
            parameter.
        first_moments, second_moments: of the parameters' shapes, float32 (float64 for float64).
        rates, decays: (n,), the learning rate and the weight decay of each parameter. They and all other tensors below
            are contiguous, on the parameters' device, and float32 (float64 if a parameter is).
        corrections: (n, 2), c1 and c2 of each parameter, which are 1 - b1^step and 1 - b2^step after its own number of
            steps. None means (1, 1), no bias correction.
        squares: (K,) for any K, the result of `gradient_squares` for these gradients, or its sum over the ranks of a
            sharded run. None computes them here, with one more launch.
        max_norm: (), above 0, the maximum of the norm after clipping. None does not clip.
        scale: (), the factor of all gradients, applied first. None means 1.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        norm: (), the norm before clipping, float32 (float64 for float64), on the device; the host does not wait. The
        caller must check it: if it is not finite, the updated parameters are meaningless.

    Raises:
        TypeError, ValueError: a tensor's dtype, shape, device or layout is wrong, or a number out of range (numbers on
            a GPU are not checked, because the host would have to wait).
        RuntimeError: the backend asked for cannot serve the call.

    Half-precision parameters are rounded to nearest: updates of less than half a unit in the last place are lost.
    """
    tensors = (parameters, gradients, first_moments, second_moments)
    _check_lists(*tensors)
    dtype, device = _widest(parameters), parameters[0].device
    _check_numbers(len(parameters), dtype, device, rates, decays, corrections, squares, max_norm, scale)
    if not all(0 <= b < 1 for b in betas) or not eps >= 0:
        raise ValueError(f"{OP}: betas in [0, 1) and eps >= 0 expected, got {betas} and {eps}")
    backend = backends.choose(SPEC, backend, backends.call_of(parameters[0], dtype=dtype))
    if squares is None:
        squares = gradient_squares(gradients, backend=backend)
    update = backends.implementation(SPEC, backend, "adamw", _launch_update)
    with _on(device):
        return update(*tensors, rates, decays, betas, eps, corrections, squares, max_norm, scale)


def _launch_update(
    launchers: Any,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    rates: Tensor,
    decays: Tensor,
    betas: tuple[float, float],
    eps: float,
    corrections: Tensor | None,
    squares: Tensor,
    max_norm: Tensor | None,
    scale: Tensor | None,
) -> Tensor:
    norm = squares.new_empty(())
    launchers.adamw(
        *map(list, (parameters, gradients, first_moments, second_moments)), rates, decays, corrections, squares,
        max_norm, scale, norm, *betas, eps, _num_ctas(parameters),
    )  # fmt: skip
    return norm


def _num_ctas(tensors: Sequence[Tensor]) -> int:
    return num_partials(sum(-(-x.numel() // SLICE) for x in tensors), tensors[0].device)


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    """Returns the widest dtype of the tensors, which decides the backend."""
    return max((x.dtype for x in tensors), key=lambda dtype: torch.finfo(dtype).bits)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _on(device: torch.device) -> contextlib.AbstractContextManager:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _check_lists(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
) -> None:
    if not parameters:
        raise ValueError(f"{OP}: at least one parameter expected, got none")
    lists = {"gradients": gradients, "first_moments": first_moments, "second_moments": second_moments}
    for name, given in lists.items():
        if len(given) != len(parameters):
            raise ValueError(f"{OP}: {name} must have an entry per parameter, {len(parameters)}, got {len(given)}")
    for i, p in enumerate(parameters):
        _check_tensor(f"parameters[{i}]", p, parameters[0].device)
        for name, given in lists.items():
            dtype = _wide(p.dtype) if name.endswith("moments") else p.dtype
            _check_tensor(f"{name}[{i}]", given[i], p.device, dtype, p.shape, "its parameter's shape")


def _check_numbers(
    count: int,
    dtype: torch.dtype,
    device: torch.device,
    rates: Tensor,
    decays: Tensor,
    corrections: Tensor | None,
    squares: Tensor | None,
    max_norm: Tensor | None,
    scale: Tensor | None,
) -> None:
    _check_tensor("rates", rates, device, _wide(dtype), (count,))
    _check_tensor("decays", decays, device, _wide(dtype), (count,))
    optional = {"corrections": (corrections, (count, 2)), "max_norm": (max_norm, ()), "scale": (scale, ())}
    for name, (x, shape) in optional.items():
        if x is not None:
            _check_tensor(name, x, device, _wide(dtype), shape)
    if squares is not None:
        _check_tensor("squares", squares, device, _wide(dtype), (squares.numel(),))
    if device.type != "cpu":
        return
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"{OP}: max_norm must be above 0, got {max_norm.item():g}")
    if corrections is not None and not ((corrections > 0) & (corrections <= 1)).all():
        raise ValueError(f"{OP}: corrections must lie in (0, 1], got {corrections.tolist()}")


def _check_tensor(
    name: str,
    x: Tensor,
    device: torch.device,
    dtype: torch.dtype | None = None,
    shape: Sequence[int] | None = None,
    whose: str = "shape",
) -> None:
    """Checks that x is contiguous, on `device`, and has the dtype (None: any floating one) and shape (None: any)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{OP}: {name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in _checks.FLOATING if dtype is None else x.dtype != dtype:
        expected = "floating" if dtype is None else backends.dtype_name(dtype)
        raise TypeError(f"{OP}: {name} must be {expected}, got {backends.dtype_name(x.dtype)}")
    if shape is not None and x.shape != tuple(shape):
        raise ValueError(f"{OP}: {name} must have {whose} {tuple(shape)}, got {tuple(x.shape)}")
    if x.device != device:
        raise ValueError(f"{OP}: {name} is on {x.device}, but it must be on {device}, as the first tensor is")
    if not x.is_contiguous():
        raise ValueError(f"{OP}: {name} must be contiguous, got strides {x.stride()}")
