"""Placement of a run: device, precision and backend. Imports torch only to find a device."""

from __future__ import annotations

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
