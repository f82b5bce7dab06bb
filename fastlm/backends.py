"""Which backend serves an op, and why.

`reference` (plain PyTorch) runs anywhere; `triton` and `cuda` are the fused kernels. An explicit request
works or raises, saying why; `auto` takes the first backend in the device's order of preference that
supports the call. The choice is made once, in the op's public function, and passed to its backward.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

NAMES = ("auto", "reference", "triton", "cuda")

_KERNEL = (torch.float32, torch.float16, torch.bfloat16)
_HALF = (torch.float16, torch.bfloat16)
_ANY = (*_KERNEL, torch.float64)

# The truth about op x backend x dtype: `fastlm info` prints it, the tests are generated from it.
DTYPES: dict[str, dict[str, tuple[torch.dtype, ...]]] = {
    "attention": {"reference": _ANY, "triton": _KERNEL, "cuda": _HALF},
    "attention_packed": {"reference": _ANY, "triton": _KERNEL, "cuda": _HALF},
    "layer_norm": {"reference": _ANY, "triton": _KERNEL, "cuda": _KERNEL},
    "add_layer_norm": {"reference": _ANY, "triton": _KERNEL, "cuda": _KERNEL},
    "gelu_layer_norm": {"reference": _ANY, "triton": _KERNEL, "cuda": _KERNEL},
    "layer_norm_gelu": {"reference": _ANY, "triton": _KERNEL, "cuda": _KERNEL},
    "bias_gelu": {"reference": _ANY, "triton": _KERNEL, "cuda": _KERNEL},
    "embedding_layer_norm": {"reference": _ANY, "triton": _KERNEL, "cuda": _KERNEL},
    "linear_cross_entropy": {"reference": _ANY, "triton": _KERNEL, "cuda": _KERNEL},
    "adamw": {"reference": _ANY, "triton": _KERNEL, "cuda": _KERNEL},
}

# The file, in kernels/ and csrc/, that holds an op's launchers, where it is not named after the op.
STEMS = {"add_layer_norm": "layer_norm", "attention_packed": "attention"}

# The largest last dimension that an op's kernels take, where there is a limit.
_ROWS = ("layer_norm", "add_layer_norm", "gelu_layer_norm", "layer_norm_gelu", "embedding_layer_norm")
WIDEST = {
    "attention": {"triton": 128, "cuda": 128},
    "attention_packed": {"triton": 128, "cuda": 128},
    **{op: {"triton": 8192, "cuda": 8192} for op in _ROWS},
}

# What the last dimension must be a multiple of: CUDA C++ reads heads 16 bytes at a time.
MULTIPLES = {op: {"cuda": 8} for op in ("attention", "attention_packed")}

# `auto` on each kind of device. No GPU has measured the kernels yet: Triton comes first because its
# compiler knows the chip at hand, and the order is to be replaced by a table of measurements.
PREFERENCE = {"cuda": ("triton", "cuda", "reference"), "cpu": ("reference",)}

_default = "auto"


def set_backend(name: str) -> None:
    """Set the backend of all calls that do not name one: "auto", "reference", "triton" or "cuda"."""
    global _default
    _default = _checked(name)


def get_backend() -> str:
    """The backend of calls that do not name one."""
    return _default


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """`set_backend` for the duration of a `with` block."""
    previous = get_backend()
    set_backend(name)
    try:
        yield
    finally:
        set_backend(previous)


def resolve(op: str, requested: str, dtype: torch.dtype, device: str, width: int = 0) -> str:
    """The backend that serves `op` for activations of `dtype` and last dimension `width` on a device of type `device`.

    Of width 0 nothing is asked. Raises RuntimeError where the backend that was asked for cannot serve the call.
    """
    name = _checked(requested)
    if name == "auto":
        name = _default
    if name == "auto":
        return _first_able(op, dtype, device, width)
    reason = _reason_against(op, name, dtype, device) or _wrong_width(op, name, width)
    if reason is not None:
        raise RuntimeError(f"{op}: backend '{name}' cannot serve this call: {reason}")
    return name


def explain(op: str, dtype: torch.dtype, device: str) -> tuple[str, str]:
    """What `auto` takes for a call, and why in words."""
    chosen = _first_able(op, dtype, device)
    passed = [f"{b}: {_reason_against(op, b, dtype, device)}" for b in ("triton", "cuda") if b != chosen]
    passed = [p for p in passed if not p.endswith(": None")]
    order = "first in the order of preference, not yet measured" if device == "cuda" else "the CPU's path"
    return chosen, "; ".join([order, *passed])


def launchers(backend: str, op: str) -> Any:
    """The object whose attributes are an op's launchers: a module of kernels/, or `_C` with the stream."""
    if backend == "triton":
        return _kernels(STEMS.get(op, op))
    return _emulated_launchers() if emulated() else _cuda_launchers()


def emulated() -> bool:
    """Whether `backend="cuda"` runs CPU tensors on the emulator: a switch for tests only."""
    return os.environ.get("FASTLM_EMULATE") == "1"


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def extension_error() -> str | None:
    """Why `fastlm._C` cannot be used, or None where it can."""
    return _import_error("fastlm._C")


def kernels_error(stem: str = "layer_norm") -> str | None:
    """Why the Triton kernels cannot be used, or None where they can."""
    return _import_error("triton") or _import_error(f"fastlm.kernels.{stem}")


def _checked(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}, got {name!r}")
    return name


def _first_able(op: str, dtype: torch.dtype, device: str, width: int = 0) -> str:
    for name in PREFERENCE.get(device, ("reference",)):
        if (_reason_against(op, name, dtype, device) or _wrong_width(op, name, width)) is None:
            return name
    raise RuntimeError(f"{op}: no backend serves {dtype} on {device}")


def _wrong_width(op: str, name: str, width: int) -> str | None:
    widest = WIDEST.get(op, {}).get(name, width)
    if width > widest:
        return f"it takes a last dimension of at most {widest}, not {width}"
    multiple = MULTIPLES.get(op, {}).get(name, 1)
    return f"it takes a last dimension that is a multiple of {multiple}, not {width}" if width % multiple else None


def _reason_against(op: str, name: str, dtype: torch.dtype, device: str) -> str | None:
    supported = DTYPES[op].get(name)
    if supported is None:
        return f"there is no {name} kernel for {op} yet"
    if dtype not in supported:
        return f"it takes {', '.join(_short(d) for d in supported)}, not {_short(dtype)}"
    if device == "meta":
        return None  # shapes alone: no kernel runs
    if name == "triton":
        return _reason_against_triton(STEMS.get(op, op), dtype, device)
    if name == "cuda":
        return _reason_against_cuda(device)
    return None


# torch.compile takes the answer as a constant: it rests on what is installed, not on tensors. This is all that
# torch.compiler.assume_constant_result does, short of importing torch._dynamo, which takes two seconds.
_reason_against._dynamo_marked_constant = True


def _reason_against_triton(stem: str, dtype: torch.dtype, device: str) -> str | None:
    if device != "cuda" and not interpreted():
        return f"the tensors are on {device}, and Triton's kernels need a CUDA device (or TRITON_INTERPRET=1)"
    if interpreted() and dtype == torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly"
    return kernels_error(stem)


def _reason_against_cuda(device: str) -> str | None:
    if emulated():
        return _import_error("_C_emulated") if device == "cpu" else "FASTLM_EMULATE=1 is for CPU tensors"
    if device != "cuda":
        return f"the tensors are on {device}, and CUDA kernels need a CUDA device"
    return extension_error()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def _import_error(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"{module} cannot be imported ({error})"
    return None


@functools.cache
def _kernels(stem: str) -> Any:
    return importlib.import_module(f"fastlm.kernels.{stem}")


class _Extension:
    """`_C`'s launchers with the current stream as their last argument."""

    def __init__(self, module: str, stream: Callable[[], int]):
        self._module = importlib.import_module(module)
        self._stream = stream

    def __getattr__(self, name: str) -> Callable[..., None]:
        launcher, stream = getattr(self._module, name), self._stream

        def launch(*args: Any) -> None:
            launcher(*args, stream())

        setattr(self, name, launch)
        return launch


@functools.cache
def _cuda_launchers() -> _Extension:
    return _Extension("fastlm._C", lambda: torch.cuda.current_stream().cuda_stream)


@functools.cache
def _emulated_launchers() -> _Extension:
    return _Extension("_C_emulated", lambda: 0)
