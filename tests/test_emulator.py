"""The emulator computes what the hardware would, and together with the sanitizers catches mistakes in kernels.

The programs are those of tests/native/, built in build/emulated/. A fault counts as caught only if the same kernel
without the fault passes under the same sanitizer.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BUILD = Path(__file__).parent.parent / "build" / "emulated"

# The kind of program that catches a fault, and what it prints.
OVERRUN = ("asan", "AddressSanitizer: heap-buffer-overflow")
BOUNDS = ("asan", "index 64 out of bounds")
RACE = ("tsan", "ThreadSanitizer: data race")
NOT_A_NUMBER = ("plain", "the result is not finite")

FAULTS = {
    "read_past_end": OVERRUN,
    "write_past_end": OVERRUN,
    "write_past_static_shared": BOUNDS,
    "write_past_dynamic_shared": OVERRUN,
    "missing_barrier": RACE,
    "missing_second_barrier": RACE,
    "missing_warp_barrier": RACE,
    "shuffle_for_a_barrier": RACE,
    "missing_wait": NOT_A_NUMBER,
    "wait_for_too_few": NOT_A_NUMBER,
    "missing_barrier_after_wait": RACE,
    "never_waits": ("plain", "thread 0 of block (0, 0, 0): returned without waiting for 1 cp_async"),
    "mask_of_lanes_elsewhere": ("plain", "waits in shuffle for lanes ffffffff, of which 0000ffff arrived"),
    "mask_without_the_caller": ("plain", "the mask 0000ffff leaves out the lane that calls, 16"),
    "shuffle_from_outside_the_mask": ("plain", "lane 0 reads lane 16, which the mask 0000ffff leaves out"),
    "barrier_count": ("plain", "64 of 96 threads arrived at barrier 1"),
}


def built(program: str) -> Path:
    """Builds a program if it is not up to date, and returns its path."""
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    command = [cmake, "--build", BUILD, "--target", program]
    with (BUILD / ".native.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one build at a time: two would link each other's unfinished files
        build = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert build.returncode == 0, build.stdout
    return BUILD / "tests" / "native" / program


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("kind", ["plain", "asan", "tsan", "portable_fibers"])
def test_what_it_computes(kind):
    result = run(built(f"emulator_{kind}"))
    assert result.returncode == 0, result.stderr


# layer_norm takes a tenth of the time that the three kinds of each other program take to build and run.
ALL_KERNELS = ["layer_norm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("row_ops", "attention"))]


@pytest.mark.parametrize("kernel", ALL_KERNELS)
@pytest.mark.parametrize("kind", ["plain", "asan", "tsan"])
def test_kernels_are_clean(kernel, kind):
    result = run(built(f"{kernel}_{kind}"))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(fault):
    kind, report = FAULTS[fault]
    program = built(f"faults_{kind}")
    sound = run(program, fault, "sound")
    assert sound.returncode == 0, sound.stderr
    faulty = run(program, fault, "faulty")
    assert faulty.returncode != 0
    assert report in faulty.stderr, faulty.stderr


@pytest.mark.parametrize("kind", ["asan", "tsan"])
def test_sound_kernels_are_clean(kind):
    for fault in FAULTS:
        result = run(built(f"faults_{kind}"), fault, "sound")
        assert result.returncode == 0, f"{fault}: {result.stderr}"
