"""AdamW with clipping by the global norm, over all parameters of a model, in place."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastlm import backends, reference
from fastlm.ops import _checks
from fastlm.ops._register import programs

OP = "adamw"
CHUNK, TENSORS = 8192, 420  # what a program of the kernels takes in a turn, and a launch (csrc/adamw.cu)


def adamw(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    *,
    rates: Sequence[float],
    decays: Sequence[float],
    betas: tuple[float, float],
    eps: float,
    corrections: Sequence[tuple[float, float]] | None = None,
    max_norm: float = math.inf,
    scale: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """One update (Loshchilov and Hutter 2019, algorithm 2), in place; returns the gradients' norm.

    With norm = scale * |gradients| over all tensors together and g = gradient * scale * min(1, max_norm / norm),
    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p = (1 - lr decay) p - lr / c1 * m / (sqrt(v / c2) + eps).

    Args:
        parameters, gradients: contiguous, of any shapes; a gradient has its parameter's shape and dtype: float32,
            float16 or bfloat16 (float64 on the reference backend), which may differ from parameter to parameter.
        first_moments, second_moments: of the parameters' shapes, float32 (float64 for float64).
        rates, decays: a learning rate and a weight decay for each parameter.
        corrections: c1 and c2 for each parameter, which are 1 - b1^step and 1 - b2^step after its own number of steps;
            without them (1, 1), as in BERT's original code.
        max_norm: what the norm is clipped to. scale: what the gradients are multiplied by first.
        backend: "auto", "reference" or "cuda".

    Returns:
        The norm before clipping, float32 (float64 for float64) of shape (), on the device: nothing waits for it. Where
        it is not finite the update is worthless: whoever reads the norm has to look.

    Raises:
        TypeError, ValueError: a tensor's dtype, shape, device or layout is wrong, or a number out of range.
        RuntimeError: the backend asked for cannot serve the call.

    Rates, corrections and the other numbers are constants of a CUDA graph that captures the call.
    Half-precision parameters are rounded to nearest; updates under half a unit in their last place are lost.
    """
    corrections = [(1.0, 1.0)] * len(parameters) if corrections is None else corrections
    _check(parameters, gradients, first_moments, second_moments, rates, decays, corrections)
    if not max_norm > 0:
        raise ValueError(f"{OP}: max_norm must be above 0, got {max_norm}")
    if not all(0 <= b < 1 for b in betas) or not eps >= 0:
        raise ValueError(f"{OP}: betas in [0, 1) and eps >= 0 expected, got {betas} and {eps}")
    if not all(0 < c <= 1 for pair in corrections for c in pair):
        raise ValueError(f"{OP}: corrections must lie in (0, 1], got {corrections}")
    widest = max((p.dtype for p in parameters), key=lambda dtype: torch.finfo(dtype).bits)
    device = parameters[0].device
    backend = backends.resolve(OP, backend, widest, device.type)
    tensors = (parameters, gradients, first_moments, second_moments)
    if backend == "reference":
        return reference.adamw(*tensors, rates, decays, betas, eps, corrections, max_norm, scale)
    kernels = backends.launchers(backend, OP)
    chunks = sum(-(-p.numel() // CHUNK) for p in parameters)
    launches = -(-len(parameters) // TENSORS)
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        partials = torch.empty(launches, programs(chunks, device), dtype=torch.float32, device=device)
        norm = partials.new_empty(1)
        kernels.adamw_norm(list(gradients), partials)
        first, second = ([pair[i] for pair in corrections] for i in range(2))
        numbers = (list(rates), list(decays), first, second)
        kernels.adamw_update(*map(list, tensors), *numbers, partials, norm, scale, max_norm, *betas, eps)
    return norm.view(())


def _check(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    rates: Sequence[float],
    decays: Sequence[float],
    corrections: Sequence[tuple[float, float]],
) -> None:
    if not parameters:
        raise ValueError(f"{OP}: at least one parameter expected, got none")
    lists = {"gradients": gradients, "first_moments": first_moments, "second_moments": second_moments}
    for name, given in {**lists, "rates": rates, "decays": decays, "corrections": corrections}.items():
        if len(given) != len(parameters):
            raise ValueError(f"{OP}: {name} must have an entry a parameter, {len(parameters)}, got {len(given)}")
    for i, p in enumerate(parameters):
        if p.dtype not in _checks.FLOATING:
            raise TypeError(f"{OP}: parameters[{i}] must be floating, got {_checks.short(p.dtype)}")
        wide = torch.float64 if p.dtype == torch.float64 else torch.float32
        for name, tensors in {"parameters": parameters, **lists}.items():
            _check_tensor(f"{name}[{i}]", tensors[i], p, wide if name.endswith("moments") else p.dtype)
        if p.device != parameters[0].device:
            raise ValueError(f"{OP}: parameters[{i}] is on {p.device}, parameters[0] on {parameters[0].device}")


def _check_tensor(name: str, x: Tensor, p: Tensor, dtype: torch.dtype) -> None:
    if x.dtype != dtype:
        raise TypeError(f"{OP}: {name} must be {_checks.short(dtype)}, got {_checks.short(x.dtype)}")
    if x.shape != p.shape:
        raise ValueError(f"{OP}: {name} must have its parameter's shape {tuple(p.shape)}, got {tuple(x.shape)}")
    if x.device != p.device:
        raise ValueError(f"{OP}: {name} is on {x.device}, but its parameter on {p.device}")
    if not x.is_contiguous():
        raise ValueError(f"{OP}: {name} must be contiguous, got strides {x.stride()}")
