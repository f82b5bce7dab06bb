"""Which backend serves a call of an op, and why the others do not.

`reference` (plain PyTorch) runs anywhere, `cpu` (torch's fused calls) on a CPU; `triton` and `cuda` are the fused
kernels. An op's SPEC says what each
backend takes. An explicit request works or raises, and the error names every reason. `auto` takes the first backend in
its order that serves the call. The choice is made once, in the op's public function, and is passed to its backward.
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

# Backends in plain PyTorch: modules with a function per op and direction, which returns new tensors.
PLAIN = {"reference": "fastlm.reference", "cpu": "fastlm.cpu"}

# The order in which `auto` tries the backends, by device type. No GPU has measured the kernels yet: Triton comes first
# because its compiler knows the chip at hand. A SPEC's `order` goes before this.
ORDER = {"cuda": ("triton", "cuda", "reference"), "cpu": ("cpu", "reference")}

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HALF_DTYPES = (torch.float16, torch.bfloat16)
ALL_DTYPES = (*KERNEL_DTYPES, torch.float64)


@dataclass(frozen=True)
class Limits:
    """What one backend of an op takes.

    `widest` bounds the last dimension (0: no bound), which must be a multiple of `multiple`. `chip` is the lowest
    compute capability, (0, 0) for any.
    """

    dtypes: tuple[torch.dtype, ...]
    widest: int = 0
    multiple: int = 1
    chip: tuple[int, int] = (0, 0)


SM80 = (8, 0)  # the lowest compute capability that the CUDA C++ is compiled for, and that Triton supports


@dataclass(frozen=True, eq=False)
class Spec:
    """The facts of one op.

    `limits` has an entry per backend that serves the op. `kernels` names the file of kernels/, and of csrc/, with the
    op's launchers. `cost` gives the least bytes and operations of a call from its sizes. `order` overrides ORDER on a
    GPU, by the chip's major compute capability and the call's shape class.
    """

    op: str
    kernels: str
    limits: Mapping[str, Limits]
    cost: Callable[..., Any]
    order: Mapping[tuple[int, str], tuple[str, ...]] = field(default_factory=dict)


class Call(NamedTuple):
    """What the choice of a backend depends on. width=0 skips the checks of the last dimension."""

    device: str  # its type: "cpu", "cuda", "meta"
    dtype: torch.dtype
    width: int = 0
    chip: tuple[int, int] | None = None  # compute capability, where it is known
    shape_class: str = ""


def call_of(x: Tensor, *, dtype: torch.dtype | None = None, width: int = 0, shape_class: str = "") -> Call:
    """Describes a call whose activations lie where x does, by default in its dtype."""
    device = x.device.type
    chip = compute_capability(x.device) if device == "cuda" else None
    return Call(device, x.dtype if dtype is None else dtype, width, chip, shape_class)


def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """Returns a GPU's compute capability, or None where there is no GPU to ask (fake tensors)."""
    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else None


_default = "auto"


def set_backend(name: str) -> None:
    """Sets the backend of all calls that do not name one: "auto", "reference", "cpu", "triton" or "cuda"."""
    global _default
    _default = _checked(name)


def get_backend() -> str:
    """Returns the backend of calls that do not name one."""
    return _default


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Does what `set_backend` does, for the duration of a `with` block."""
    previous = get_backend()
    set_backend(name)
    try:
        yield
    finally:
        set_backend(previous)


def choose(spec: Spec, request: str, call: Call) -> str:
    """Returns the backend that serves a call.

    Raises RuntimeError with every reason, where the backend asked for, or for "auto" every backend, cannot serve it.
    """
    name = _checked(request)
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
    """Returns the backends that `auto` tries for a call, the first choice first."""
    if call.chip is not None and spec.order:
        measured = spec.order.get((call.chip[0], call.shape_class))
        if measured is not None:
            return measured
    return ORDER.get(call.device, ("reference",))


def reasons_against(spec: Spec, name: str, call: Call) -> list[str]:
    """Returns every reason why a backend cannot serve a call; none where it can."""
    limits = spec.limits.get(name)
    if limits is None:
        return [f"there is no {name} kernel for {spec.op} yet"]
    reasons = []
    if call.dtype not in limits.dtypes:
        reasons.append(f"it takes {', '.join(_short(d) for d in limits.dtypes)}, not {_short(call.dtype)}")
    unavailable = _unavailable(name, spec.kernels, call.dtype, call.device)
    if unavailable is not None:
        reasons.append(unavailable)
    if limits.widest and call.width > limits.widest:
        reasons.append(f"it takes a last dimension of at most {limits.widest}, not {call.width}")
    if call.width % limits.multiple:
        reasons.append(f"it takes a last dimension that is a multiple of {limits.multiple}, not {call.width}")
    if call.chip is not None and call.chip < limits.chip:
        needed, there = (".".join(map(str, chip)) for chip in (limits.chip, call.chip))
        reasons.append(f"it needs a GPU of compute capability {needed} or more, and this one has {there}")
    return reasons


def implementation(spec: Spec, backend: str, name: str, launch: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function that computes one direction of an op.

    In a plain backend it is that backend's function `name`. The others have launchers, which write into tensors that
    they are given: there it is `launch`, which allocates, and to which they are bound as its first argument.
    """
    plain = PLAIN.get(backend)
    if plain is not None:
        return getattr(_module(plain), name)
    return functools.partial(launch, launchers(backend, spec.kernels))


def launchers(backend: str, kernels: str) -> Any:
    """Returns the object whose attributes are launchers: a module of kernels/, or `_C` with the stream."""
    if backend == "triton":
        return _module(f"fastlm.kernels.{kernels}")
    return _emulated_launchers() if emulated() else _cuda_launchers()


def emulated() -> bool:
    """Tells whether `backend="cuda"` runs CPU tensors on the emulator: a switch for tests only."""
    return os.environ.get("FASTLM_EMULATE") == "1"


def interpreted() -> bool:
    """Tells whether Triton's kernels run in its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def extension_error() -> str | None:
    """Returns why `fastlm._C` cannot be used, or None where it can."""
    return _import_error("fastlm._C")


def kernels_error(kernels: str = "layer_norm") -> str | None:
    """Returns why the Triton kernels of a file cannot be used, or None where they can."""
    return _import_error("triton") or _import_error(f"fastlm.kernels.{kernels}")


def _checked(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}, got {name!r}")
    return name


def _unavailable(name: str, kernels: str, dtype: torch.dtype, device: str) -> str | None:
    """Returns why a backend cannot run on a device with what is installed, or None where it can."""
    if device == "meta":
        return None  # shapes alone: no kernel runs
    if name == "cpu" and device != "cpu":
        return f"the tensors are on {device}, and this backend is for CPU tensors"
    if name == "triton":
        return _triton_unavailable(kernels, dtype, device)
    if name == "cuda":
        return _cuda_unavailable(device)
    return None


# torch.compile takes the answers as constants: they rest on the machine and on what is installed, not on tensors. This
# is all that torch.compiler.assume_constant_result does, short of importing torch._dynamo, which takes two seconds.
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
def _module(name: str) -> Any:
    return importlib.import_module(name)


class _Extension:
    """`_C`'s launchers, with the current stream as their last argument."""

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
