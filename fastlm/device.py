"""Placement of a run: device, precision and backend. Imports torch only to find a device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastlm._options import check_choices, option

if TYPE_CHECKING:
    import torch


class DeviceError(ValueError):
    """Reports a device that was requested and does not exist."""


@dataclass(frozen=True)
class Placement:
    """Holds the device, precision and backend of a run. Raises ValueError, naming the option, for an invalid value."""

    device: str = option("auto: CUDA if there is one", "auto", choices=("auto", "cpu", "cuda"))
    precision: str = option("auto: bf16 autocast where it is faster", "auto", choices=("auto", "fp32", "bf16"))
    backend: str = option("which backend runs the ops", "auto", choices=("auto", "reference", "cpu", "triton", "cuda"))

    def __post_init__(self) -> None:
        check_choices(self)


def find_device(name: str) -> torch.device:
    """Returns the device "cpu" or "cuda"; "auto" is CUDA if there is one. Raises DeviceError if torch finds no CUDA."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "device: cuda was requested (by the option or a run's record), but torch finds no CUDA device"
        )
    return torch.device(name)


def memory_of(device: torch.device) -> int:
    """Returns the bytes of memory of a device: a GPU's own, or the machine's."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error reports memory that Python, numpy or torch could not allocate, on any device."""
    texts = ("out of memory", "can't allocate memory", "not enough memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)
