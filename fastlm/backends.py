"""Chooses the backend that runs a call of an op, and says why the others cannot.

`reference` (plain PyTorch) runs anywhere, `cpu` (torch's fused calls) on a CPU; `triton` and `cuda` are the fused
kernels. An op's SPEC says which calls each backend takes. A request for one backend works, or raises an error with all
reasons. `auto` takes the first backend in its order that can serve the call. The choice is made once, in the op's
public function, and passed to its backward.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

NAMES = ("auto", "reference", "cpu", "triton", "cuda")

# Backends in plain PyTorch: modules with one function per op and direction, which returns new tensors.
PLAIN = {"reference": "fastlm.reference", "cpu": "fastlm.cpu"}

# The order in which `auto` tries the backends, by device type; a SPEC's `order` overrides it. On an H200 Triton's
# kernels took 0.74 to 1.01 of the time of CUDA's in ops without such an order, and in attention 0.88 to 1.09,
# before their tiles were changed to faster ones (benchmarks/results).
ORDER = {"cuda": ("triton", "cuda", "reference"), "cpu": ("cpu", "reference")}

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HALF_DTYPES = (torch.float16, torch.bfloat16)
ALL_DTYPES = (*KERNEL_DTYPES, torch.float64)


@dataclass(frozen=True)
class Limits:
    """Holds the limits of one backend of an op.

    `max_width` is the maximum of the last dimension (0: no maximum), which must be a multiple of `multiple`. `chip` is
    the lowest compute capability, (0, 0) for any.
    """

    dtypes: tuple[torch.dtype, ...]
    max_width: int = 0
    multiple: int = 1
    chip: tuple[int, int] = (0, 0)


SM80 = (8, 0)  # the lowest compute capability that the CUDA C++ is compiled for, and that Triton supports


@dataclass(frozen=True, eq=False)
class Spec:
    """Holds the facts of one op.

    `limits` has an entry per backend of the op. `kernels` is the stem of the file in kernels/, and in csrc/, with the
    op's launchers. `cost` computes a lower bound of a call's bytes and operations from its sizes. `order` overrides
    ORDER on a GPU, by major compute capability and shape class.
    """

    op: str
    kernels: str
    limits: Mapping[str, Limits]
    cost: Callable[..., Any]
    order: Mapping[tuple[int, str], tuple[str, ...]] = field(default_factory=dict)


class Call(NamedTuple):
    """Holds the facts of a call that decide its backend. width=0 skips the checks of the width."""

    device: str  # device type: "cpu", "cuda", "meta"
    dtype: torch.dtype
    width: int = 0
    chip: tuple[int, int] | None = None  # compute capability, if it is known
    shape_class: str = ""


def call_of(x: Tensor, *, dtype: torch.dtype | None = None, width: int = 0, shape_class: str = "") -> Call:
    """Describes a call whose activations are on the device of x, by default in the dtype of x."""
    device = x.device.type
    chip = compute_capability(x.device) if device == "cuda" else None
    return Call(device, x.dtype if dtype is None else dtype, width, chip, shape_class)


def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """Returns a GPU's compute capability, or None without a GPU (fake tensors)."""
    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else None


_default = "auto"


def set_backend(name: str) -> None:
    """Sets the backend of all calls without `backend=`: "auto", "reference", "cpu", "triton" or "cuda"."""
    global _default
    _default = checked_name(name)


def get_backend() -> str:
    """Returns the backend of all calls without `backend=`."""
    return _default


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Sets the backend, as `set_backend` does, within a `with` block."""
    previous = get_backend()
    set_backend(name)
    try:
        yield
    finally:
        set_backend(previous)


def choose(spec: Spec, request: str, call: Call) -> str:
    """Returns the backend that serves a call.

    Raises RuntimeError, with all reasons, if the requested backend cannot serve it, or for "auto" if none can.
    """
    name = checked_name(request)
    if name == "auto":
        name = _default
    if name != "auto":
        reasons = reasons_against(spec, name, call)
        if reasons:
            raise RuntimeError(f"{spec.op}: backend '{name}' cannot serve this call: {'; '.join(reasons)}")
        return name
    for name in order(spec, call):
        if not reasons_against(spec, name, call):
            return name
    refused = (f"{name}: {', '.join(reasons_against(spec, name, call))}" for name in order(spec, call))
    raise RuntimeError(f"{spec.op}: no backend serves this call: {'; '.join(refused)}")


def order(spec: Spec, call: Call) -> tuple[str, ...]:
    """Returns the backends that `auto` tries for a call, in order."""
    if call.chip is not None and spec.order:
        measured = spec.order.get((call.chip[0], call.shape_class))
        if measured is not None:
            return measured
    return ORDER.get(call.device, ("reference",))


def reasons_against(spec: Spec, name: str, call: Call) -> list[str]:
    """Returns all reasons why a backend cannot serve a call, or [] if it can."""
    limits = spec.limits.get(name)
    if limits is None:
        return [f"there is no {name} kernel for {spec.op} yet"]
    reasons = []
    if call.dtype not in limits.dtypes:
        reasons.append(f"it takes {', '.join(map(dtype_name, limits.dtypes))}, not {dtype_name(call.dtype)}")
    unavailable = _unavailable(name, spec.kernels, call.dtype, call.device)
    if unavailable is not None:
        reasons.append(unavailable)
    if limits.max_width and call.width > limits.max_width:
        reasons.append(f"it takes a last dimension of at most {limits.max_width}, not {call.width}")
    if call.width % limits.multiple:
        reasons.append(f"it takes a last dimension that is a multiple of {limits.multiple}, not {call.width}")
    if call.chip is not None and call.chip < limits.chip:
        needed, there = (".".join(map(str, chip)) for chip in (limits.chip, call.chip))
        reasons.append(f"it needs a GPU of compute capability {needed} or more, and this one has {there}")
    return reasons


def implementation(spec: Spec, backend: str, name: str, launch: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function that computes one direction of an op.

    For a plain backend it is the backend's function `name`. The other backends have launchers, which write into given
    tensors. For them it is `launch`, which allocates these tensors, with the launchers bound as its first argument.
    """
    plain = PLAIN.get(backend)
    if plain is not None:
        return getattr(_module(plain), name)
    return functools.partial(launch, launchers(backend, spec.kernels))


def launchers(backend: str, kernels: str) -> Any:
    """Returns an object whose attributes are launchers: a module of kernels/, or `_C` with the stream added."""
    if backend == "triton":
        return _module(f"fastlm.kernels.{kernels}")
    return _emulated_launchers() if emulated() else _cuda_launchers()


def emulated() -> bool:
    """Returns whether `backend="cuda"` runs CPU tensors on the emulator, a switch for tests only."""
    return os.environ.get("FASTLM_EMULATE") == "1"


def interpreted() -> bool:
    """Returns whether Triton's kernels run in its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def extension_error() -> str | None:
    """Returns why `fastlm._C` cannot be used, or None if it can."""
    return _import_error("fastlm._C")


def kernels_error(kernels: str = "layer_norm") -> str | None:
    """Returns why the Triton kernels of a file cannot be used, or None if they can."""
    return _import_error("triton") or _import_error(f"fastlm.kernels.{kernels}")


def dtype_name(dtype: torch.dtype) -> str:
    """Returns a dtype's name without "torch."."""
    return str(dtype).removeprefix("torch.")


def checked_name(name: str) -> str:
    """Returns the name of a backend, or "auto". Raises ValueError for another name."""
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}, got {name!r}")
    return name


def _unavailable(name: str, kernels: str, dtype: torch.dtype, device: str) -> str | None:
    """Returns why a backend cannot run on a device, by what is installed, or None if it can."""
    if device == "meta":
        return None  # only shapes are computed
    if name == "cpu" and device != "cpu":
        return f"the tensors are on {device}, and this backend is for CPU tensors"
    if name == "triton":
        return _triton_unavailable(kernels, dtype, device)
    if name == "cuda":
        return _cuda_unavailable(device)
    return None


# torch.compile may take these results as constants, since they depend only on the machine and the installed packages.
# torch.compiler.assume_constant_result sets the same attribute, but imports torch._dynamo, which takes two seconds.
_unavailable._dynamo_marked_constant = True
compute_capability._dynamo_marked_constant = True


def _triton_unavailable(kernels: str, dtype: torch.dtype, device: str) -> str | None:
    if device != "cuda" and not interpreted():
        return f"the tensors are on {device}, and Triton's kernels need a CUDA device (or TRITON_INTERPRET=1)"
    if interpreted() and dtype == torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly"
    return kernels_error(kernels)


def _cuda_unavailable(device: str) -> str | None:
    if emulated():
        return _import_error("_C_emulated") if device == "cpu" else "FASTLM_EMULATE=1 is for CPU tensors"
    if device != "cuda":
        return f"the tensors are on {device}, and CUDA kernels need a CUDA device"
    return extension_error()


@functools.cache
def _import_error(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"{module} cannot be imported ({error})"
    return None


@functools.cache
def _module(name: str) -> Any:
    return importlib.import_module(name)


class _Extension:
    """Gives `_C`'s launchers the current stream as their last argument."""

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
