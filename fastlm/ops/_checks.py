"""Checks of the ops' arguments. They run before any kernel, and each error is one clear sentence."""

from __future__ import annotations

import numbers
import operator

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastlm.backends import dtype_name

SMALLEST_GAMMA = 1 / 64  # the backward from y divides y, with its rounding error, by gamma
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_tensor(op: str, name: str, x: object, what: str = "a tensor") -> None:
    """Checks that x is a tensor without a forward-mode tangent. `what` completes the error: "x must be <what>"."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be {what}, got {type(x).__name__}")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        raise NotImplementedError(
            f"{op}: {name} has a forward-mode tangent, but fastlm's ops have no forward-mode derivative: "
            "use reverse mode (torch.autograd.grad, backward) in place of torch.func.jvp and forward_ad"
        )


def as_number(op: str, name: str, value: object) -> float:
    """Converts a real number to a Python float. It may be a Python or numpy number or a tensor without dimensions."""
    if isinstance(value, (float, int)):
        return float(value)
    if isinstance(value, Tensor):
        if value.ndim == 0 and not value.is_complex():
            return float(value)
        raise TypeError(f"{op}: {name} must be a number, got a tensor of shape {tuple(value.shape)}")
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    return float(value)


def as_integer(op: str, name: str, value: object) -> int:
    """Converts an integer to a Python int. It may be a Python or numpy integer or a tensor without dimensions."""
    if isinstance(value, (int, torch.SymInt)):
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an integer, got {type(value).__name__}") from None


def check_activation(op: str, name: str, x: Tensor, like: Tensor | None = None) -> None:
    """Checks that x is a floating-point tensor and, with `like`, that it has the dtype, shape and device of `like`."""
    check_tensor(op, name, x)
    if x.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be {', '.join(dtype_name(d) for d in FLOATING)}, got {dtype_name(x.dtype)}")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{op}: {name} must have a last dimension of at least 1, got shape {tuple(x.shape)}")
    if like is None:
        return
    check_device(op, name, x, like)
    if x.dtype != like.dtype:
        raise TypeError(
            f"{op}: {name} must have the activations' dtype {dtype_name(like.dtype)}, got {dtype_name(x.dtype)}"
        )
    if x.shape != like.shape:
        raise ValueError(f"{op}: {name} must have shape {tuple(like.shape)}, got {tuple(x.shape)}")


def check_device(op: str, name: str, x: Tensor, like: Tensor) -> None:
    if x.device != like.device:
        raise ValueError(f"{op}: {name} is on {x.device}, but the activations are on {like.device}")


def check_parameter(op: str, name: str, p: Tensor | None, x: Tensor, *shape: int) -> None:
    """Checks that p is None, or has the given shape and the dtype of the activations x, or float32."""
    if p is None:
        return
    check_tensor(op, name, p, f"a tensor of shape {shape}")
    check_device(op, name, p, x)
    allowed = (x.dtype, torch.float32)
    if p.dtype not in allowed:
        raise TypeError(
            f"{op}: {name} must be {' or '.join(sorted({dtype_name(d) for d in allowed}))}, got {dtype_name(p.dtype)}"
        )
    if tuple(p.shape) != shape:
        raise ValueError(f"{op}: {name} must have shape {shape}, got {tuple(p.shape)}")


def check_integers(op: str, name: str, ids: Tensor | None, like: Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
    """Checks that ids is None, or has `shape` and `dtype` and is on the device of `like`."""
    if ids is None:
        return
    check_tensor(op, name, ids, f"a tensor of {dtype_name(dtype)} of shape {tuple(shape)}")
    check_device(op, name, ids, like)
    if ids.dtype != dtype:
        raise TypeError(f"{op}: {name} must be {dtype_name(dtype)}, got {dtype_name(ids.dtype)}")
    if ids.shape != shape:
        raise ValueError(f"{op}: {name} must have shape {tuple(shape)}, got {tuple(ids.shape)}")


def check_range(op: str, name: str, ids: Tensor | None, low: int, high: int, *, ignore: int | None = None) -> None:
    """Checks that all ids are in [low, high) or equal `ignore`, on a CPU only: on a GPU the host would have to wait."""
    if ids is None or ids.device.type != "cpu" or torch.compiler.is_compiling() or ids.numel() == 0:
        return
    smallest, largest = (bound.item() for bound in ids.aminmax())
    if low <= smallest and largest < high:
        return
    bad = (ids < low) | (ids >= high)
    if ignore is not None:
        bad &= ids != ignore
    if bad.any():
        also = "" if ignore is None else f" or equal ignore_index {ignore}"
        raise ValueError(f"{op}: {name} must lie in [{low}, {high}){also}, got {ids[bad][0].item()}")


def check_offsets(op: str, cu_seqlens: Tensor, x: Tensor, max_seqlen: int) -> None:
    """Checks the offsets of the sequences that are packed in the rows of x (T, ...); their values on a CPU only."""
    check_tensor(op, "cu_seqlens", cu_seqlens, "a tensor of int32 of shape (B + 1,)")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(f"{op}: cu_seqlens must have shape (B + 1,) with B >= 1, got {tuple(cu_seqlens.shape)}")
    check_integers(op, "cu_seqlens", cu_seqlens, x, cu_seqlens.shape, torch.int32)
    if cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling():
        return
    rows, steps = x.shape[0], cu_seqlens.diff()
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != rows or (steps < 0).any():
        raise ValueError(f"{op}: cu_seqlens must rise from 0 to the {rows} rows given, got {cu_seqlens.tolist()}")
    if steps.max() > max_seqlen:
        raise ValueError(f"{op}: max_seqlen must be at least the longest sequence, {steps.max()}, got {max_seqlen}")


def check_together(op: str, first: str, a: Tensor | None, second: str, b: Tensor | None) -> None:
    if (a is None) != (b is None):
        given, missing = (second, first) if a is None else (first, second)
        raise ValueError(f"{op}: {given} needs {missing}: give both or neither")


def checked_seed(op: str, seed: Tensor | None, keep: int, x: Tensor) -> Tensor | None:
    """Checks the seed. Returns None without dropout, else the seed as int64 (1,) on the device of x."""
    if keep == 256:
        return None
    if seed is None:
        raise ValueError(f"{op}: dropout_p > 0 needs a seed: one int64 on {x.device} (see fastlm.dropout.draw_seeds)")
    return _one_int64(op, "seed", seed, x)


def checked_first(op: str, name: str, first: Tensor | None, keep: int, x: Tensor) -> Tensor | None:
    """Checks the global number of the call's first row or sequence. Returns None without dropout, else int64 (1,)."""
    return None if keep == 256 or first is None else _one_int64(op, name, first, x)


def _one_int64(op: str, name: str, value: Tensor, x: Tensor) -> Tensor:
    check_tensor(op, name, value, "a tensor of one int64")
    check_device(op, name, value, x)
    if value.dtype != torch.int64 or value.numel() != 1:
        raise TypeError(
            f"{op}: {name} must hold one int64, got {dtype_name(value.dtype)} of shape {tuple(value.shape)}"
        )
    return value.reshape(1)


def checked_eps(op: str, eps: float) -> float:
    """Checks that eps is at least 0, and returns it as a Python float."""
    eps = as_number(op, "eps", eps)
    if not eps >= 0.0:
        raise ValueError(f"{op}: eps must be at least 0, got {eps}")
    return eps


def check_invertible(op: str, gamma: Tensor, beta: Tensor | None) -> None:
    """Checks that the backward can compute xhat = (y - beta) / gamma from y: no gamma may be too small.

    On a GPU the host does not wait for the check, and a failure is an error of the device (an assertion).
    """
    scale = torch.ones_like(gamma) if beta is None else beta.abs().clamp(min=1.0)
    small = gamma.abs() < SMALLEST_GAMMA * scale
    message = (
        f"{op}: keep_sum=False divides by gamma in the backward, and needs every |gamma| to be at least "
        f"{SMALLEST_GAMMA:g} times the larger of 1 and |beta|"
    )
    if gamma.device.type != "cpu":
        torch._assert_async(~small.any(), message)
    elif small.any():
        i = int(small.nonzero()[0])
        raise ValueError(f"{message}, got gamma[{i}] = {gamma[i].item():g}")


def check_approximation(op: str, approximate: str) -> None:
    if approximate not in ("tanh", "none"):
        raise ValueError(f"{op}: approximate must be 'tanh' or 'none' (the exact erf), got {approximate!r}")
