"""Where the kernels run: on the GPU where there is one, else in Triton's interpreter and on the emulator."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from hypothesis import settings

EMULATED = Path(__file__).parent.parent / "build" / "emulated"

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated, so before any import of fastlm.kernels
    os.environ["FASTLM_EMULATE"] = "1"
    sys.path.insert(0, str(EMULATED))

# Two cores, and results that do not depend on how work is split among them.
torch.set_num_threads(min(2, os.cpu_count() or 1))

# The same examples every time, so that a failure is the doing of what was changed, and as long as each takes.
settings.register_profile("fastlm", deadline=None, derandomize=True)
settings.load_profile("fastlm")


def pytest_report_header() -> str:
    if torch.cuda.is_available():
        return f"fastlm: kernels run on {torch.cuda.get_device_name()}; cases on the CPU run the reference only"
    return "fastlm: no CUDA device: Triton runs in its interpreter, CUDA C++ on the emulator; gpu tests are deselected"


def pytest_runtest_setup(item) -> None:
    torch.manual_seed(0)  # what a test draws does not depend on the tests before it


def pytest_collection_modifyitems(config, items) -> None:
    if torch.cuda.is_available():
        return
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        config.hook.pytest_deselected(items=on_gpu)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
