"""Records the launches of CUDA C++ and Triton kernels instead of making them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.predict.instructions import Kernel, load
from benchmarks.predict.launch import Launch


@dataclass(frozen=True)
class Recorded:
    """Holds a launch and its kernel."""

    kernel: Kernel
    launch: Launch


class _Dim3(ctypes.Structure):
    _fields_ = [(n, ctypes.c_uint) for n in "xyz"]


class _RecordedLaunch(ctypes.Structure):
    """What recording_runtime.cpp tells of a launch."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("grid", _Dim3),
        ("block", _Dim3),
        ("shared", ctypes.c_uint64),
        ("cluster", ctypes.c_uint32),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
    ]


_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.POINTER(_RecordedLaunch))


@contextlib.contextmanager
def recording_cuda(library: ctypes.CDLL, kernels: dict[str, Kernel]) -> Iterator[list[Recorded]]:
    """Collects the launches that are made through a library linked with the recording runtime.

    Raises RuntimeError at the end if a kernel was launched that is not among `kernels`.
    """
    found: list[Recorded] = []
    unknown: list[str] = []

    def note(pointer: Any) -> None:
        recorded = pointer.contents
        name = recorded.name.decode()
        if name in kernels:
            found.append(_recorded_cuda(kernels[name], recorded))
        else:
            unknown.append(name)

    callback = _CALLBACK(note)
    slot = ctypes.c_void_p.in_dll(library, "recorded_launch")
    slot.value = ctypes.cast(callback, ctypes.c_void_p).value
    try:
        yield found
    finally:
        slot.value = None
    if unknown:
        raise RuntimeError(f"kernels that are in no cubin were launched: {', '.join(unknown)}")


def _recorded_cuda(kernel: Kernel, recorded: _RecordedLaunch) -> Recorded:
    data = _parameter_bytes(kernel)
    for n, (offset, size) in enumerate(kernel.parameters):
        data[offset : offset + size] = ctypes.string_at(recorded.arguments[n], size)
    grid, block = ((d.x, d.y, d.z) for d in (recorded.grid, recorded.block))
    return Recorded(kernel, Launch(grid, block, recorded.shared, bytes(data), cluster=recorded.cluster))


def _parameter_bytes(kernel: Kernel) -> bytearray:
    return bytearray(kernel.parameters_size or max((at + size for at, size in kernel.parameters), default=0))


@contextlib.contextmanager
def recording_triton() -> Iterator[list[Recorded]]:
    """Collects Triton's launches, compiled for an H100."""
    from triton.runtime.jit import JITFunction

    from benchmarks.resources._compile import CHIPS, _pretending

    found: list[Recorded] = []
    with _pretending(next(chip for chip in CHIPS if chip.arch == 90), []):
        compile_only = JITFunction.run

        def record(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            compiled = compile_only(self, *args, grid=grid, warmup=warmup, **options)
            bound = dict(zip(self.arg_names, args, strict=False)) | options
            found.append(_recorded_triton(compiled, bound, tuple(grid(bound) if callable(grid) else grid)))
            return compiled

        JITFunction.run = record
        try:
            yield found
        finally:
            JITFunction.run = compile_only


@functools.lru_cache(maxsize=1024)
def _only_kernel(cubin: bytes) -> Kernel:
    """Returns the kernel of a cubin that has one."""
    (kernel,) = load(cubin).values()
    return kernel


def _recorded_triton(compiled: Any, bound: dict[str, Any], grid: tuple[int, ...]) -> Recorded:
    kernel = _only_kernel(compiled.asm["cubin"])
    data, places = _parameter_bytes(kernel), iter(kernel.parameters)

    def put(kind: Any, value: Any) -> None:
        if isinstance(kind, tuple | list):
            for part, of_part in zip(kind, value, strict=True):
                put(part, of_part)
        elif kind != "constexpr":
            at, size = next(places)
            data[at : at + size] = _as_bytes(kind, value, size)

    for name, kind in compiled.src.signature.items():
        put(kind, bound.get(name))
    block = (32 * compiled.metadata.num_warps, 1, 1)
    return Recorded(kernel, Launch((*grid, 1, 1)[:3], block, compiled.metadata.shared, bytes(data)))


def _as_bytes(kind: str, value: Any, size: int) -> bytes:
    """Returns an argument of one of Triton's types as it lies among the parameters."""
    if kind.startswith("*"):
        return struct.pack("<Q", value.data_ptr())
    if kind.startswith("fp"):
        return struct.pack("<f", value)[:size]
    return (int(value) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
