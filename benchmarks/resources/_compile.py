"""Compiles a launcher's Triton kernels for a chip instead of launching them."""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
MATRIX_UNITS = ("tcgen05.mma", "wgmma.mma_async", "mma.sync")


@dataclass(frozen=True)
class Chip:
    """Names a compute capability (90 is 9.0), and the number of SMs of a GPU that has it."""

    arch: int
    multiprocessors: int


CHIPS = (Chip(80, 108), Chip(90, 132), Chip(100, 148))


@dataclass(frozen=True)
class Usage:
    """Holds the resources of one kernel: registers and spilled bytes per thread, bytes of shared memory per CTA."""

    kernel: str
    arch: int
    warps: int
    registers: int
    spills: int
    shared: int
    matrix: str  # the PTX instruction of its matrix products, "" if it has none


def compile_for(chip: Chip, launch: Callable[[], None]) -> dict[str, Usage]:
    """Returns the usage of each kernel that `launch` would launch on `chip`, in that order, keyed by the kernel's
    hash."""
    kernels: list[Any] = []
    with _pretending(chip, kernels):
        launch()
    return {kernel.hash: _usage(kernel, chip) for kernel in kernels}


@contextlib.contextmanager
def _pretending(chip: Chip, kernels: list[Any]) -> Iterator[None]:
    """Makes Triton and torch see `chip` as the current device. A launch only compiles, and appends to `kernels`."""
    major, minor = divmod(chip.arch, 10)
    properties = SimpleNamespace(major=major, minor=minor, multi_processor_count=chip.multiprocessors)
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        kernels.append(kernel)
        return kernel

    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(driver, "_active", NoDevice(chip.arch)),
        mock.patch.object(torch.cuda, "get_device_capability", lambda device=None: (major, minor)),
        mock.patch.object(torch.cuda, "get_device_properties", lambda device=None: properties),
    ):
        yield


class NoDevice:
    """Implements the part of Triton's driver that compilation uses.

    `arch` is also the device number, because Triton caches kernels by device number.
    """

    def __init__(self, arch: int):
        self._arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._arch, 32)

    def get_current_device(self) -> int:
        return self._arch

    def get_current_stream(self, device: int) -> int:
        return 0


def _usage(kernel: Any, chip: Chip) -> Usage:
    found = _resources(kernel.asm["cubin"])
    ptx = kernel.asm["ptx"]
    return Usage(
        kernel=kernel.name,
        arch=chip.arch,
        warps=kernel.metadata.num_warps,
        registers=found["REG"],
        spills=found["STACK"] + found["LOCAL"],
        shared=kernel.metadata.shared,
        matrix=next((unit for unit in MATRIX_UNITS if unit in ptx), ""),
    )


def _resources(cubin: bytes) -> dict[str, int]:
    """Returns the resources of the one kernel in a cubin, as `resources_in` does."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        return resources_in(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def resources_in(text: str) -> dict[str, int]:
    """Parses one kernel's line of cuobjdump's output into {"REG": 32, "STACK": 0, "LOCAL": 0, ...}."""
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", text)}
