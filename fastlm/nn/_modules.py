"""Helpers that the modules share: checks of arguments, dropout's arguments, and the way back to torch's computation."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlm.backends import get_backend
from fastlm.dropout import draw_seeds, keep_count
from fastlm.keep import LEVELS
from fastlm.ops import _checks

LINEAR = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)


def checked_dropout(module: nn.Module, dropout: float) -> float:
    """Returns the probability. Raises TypeError or ValueError if it cannot be applied."""
    name = type(module).__name__
    dropout = _checks.as_number(name, "dropout", dropout)
    keep_count(dropout, f"{name}: dropout")
    return dropout


def checked_gelu(module: nn.Module, approximate: str) -> str:
    """Returns the form of the GELU. Raises ValueError if there is no such form."""
    _checks.check_approximation(type(module).__name__, approximate)
    return approximate


def checked_probability(module: nn.Module, dropout: float) -> float:
    """Returns a probability as torch takes it. Raises TypeError or ValueError if it is not in [0, 1]."""
    name = type(module).__name__
    dropout = _checks.as_number(name, "dropout", dropout)
    if not 0.0 <= dropout <= 1.0:
        raise ValueError(f"{name}: dropout must be in [0, 1], got {dropout}")
    return dropout


def reason_against_dropout(name: str, p: float) -> str | None:
    """Returns why the ops cannot apply dropout with probability p in [0, 1], or None if they can."""
    if p == 0.0 or 0 < round((1.0 - p) * LEVELS) < LEVELS:
        return None
    return f"{name} is applied in steps of 1/{LEVELS}, and {p} is too near to {round(p)}"


def dropout_options(
    module: nn.Module, p: float, seed: Tensor | None, device: torch.device, **first: Tensor | None
) -> dict[str, Any]:
    """Returns the dropout arguments of an op: none outside training, and a drawn seed if none is given."""
    if p == 0.0 or not module.training:
        return {}
    return {"dropout_p": p, "seed": draw_seeds(1, device) if seed is None else seed, **first}


def kind_of(module: nn.Module) -> type:
    """Returns the type of a module; of one that `fastlm.patch` replaced, the type of fastlm.nn that it computes as."""
    return getattr(type(module), "namesake", type(module))


def is_plain(module: nn.Module, *types: type) -> bool:
    """Returns whether the module is of one of the types itself, and nothing changed what a call of it does.

    Only then may its parameters be read without calling it. Adapters and parametrizations have a type of their own.
    """
    return (
        kind_of(module) in types
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and "forward" not in module.__dict__
    )


def project(linear: nn.Module, x: Tensor, return_bias: bool) -> Tensor | tuple[Tensor, Tensor]:
    return (F.linear(x, linear.weight), linear.bias) if return_bias else linear(x)


def split_bias(linear: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns x W^T and the bias, or linear(x) and None if the module is not a plain linear layer."""
    return (F.linear(x, linear.weight), linear.bias) if is_plain(linear, *LINEAR) else (linear(x), None)


def gelu_form(activation: Any) -> str | None:
    """Returns "tanh" or "none" (erf) if the activation is a GELU, else None."""
    if activation is F.gelu:
        return "none"
    if isinstance(activation, functools.partial):
        options = dict(activation.keywords)
        form = options.pop("approximate", "none")
        return form if activation.func is F.gelu and not activation.args and not options else None
    if isinstance(activation, nn.GELU) and is_plain(activation, type(activation)):
        return activation.approximate
    return None


def become(module: nn.Module, kind: type, backend: str) -> None:
    """Makes a module of torch.nn the subclass `kind` of its class: its parameters and random numbers stay the same."""
    module.__class__ = kind
    module.backend = backend


def fall_back(module: nn.Module, reason: str) -> None:
    """Warns, once per module and reason, that torch's own computation serves a call.

    Raises RuntimeError if a backend was asked for, by the module's `backend` or `fastlm.set_backend`.
    """
    request = module.backend if module.backend != "auto" else get_backend()
    name = type(module).__name__
    if request != "auto":
        raise RuntimeError(f"{name}: backend {request!r} cannot serve this call: {reason}")
    text = f"{name}: torch's own computation is used, not fastlm's kernels: {reason}"
    if torch.compiler.is_compiling():
        _warn(text)  # once per compilation
        return
    said = module.__dict__.setdefault("_said", set())
    if reason not in said:
        said.add(reason)
        _warn(text)


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)


# torch.compile calls this while it traces (see fastlm.backends).
_warn._dynamo_marked_constant = True
