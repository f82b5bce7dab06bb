"""Triton's kernels, compiled for three GPU targets without a GPU, spill no registers and fit in shared memory."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastlm.ops import SPECS

ROOT = Path(__file__).parent.parent
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # maximum bytes per CTA (CUDA programming guide, table 30)
FAST = {"bias_gelu": tuple(SHARED), "attention": (90,)}  # compiled by `make test`; `make test-all` compiles all

TRITON_FILES = sorted({spec.kernels for spec in SPECS.values() if "triton" in spec.limits})


def kernel_files(*stems: str) -> list:
    """Returns parameters (stem, chips): the files in FAST for the chips there, then every file for all chips, marked
    slow."""
    fast = [pytest.param(stem, FAST[stem], id=f"{stem}-fast") for stem in stems if stem in FAST]
    return [*fast, *(pytest.param(stem, tuple(SHARED), id=stem, marks=pytest.mark.slow) for stem in stems)]


@pytest.mark.parametrize(("stem", "chips"), kernel_files(*TRITON_FILES))
def test_nothing_spills_and_shared_memory_suffices(stem, chips):
    usages = compiled(stem, chips)
    assert {usage["arch"] for usage in usages} == set(chips)
    spilling = [usage for usage in usages if usage["spills"]]
    assert not spilling, spilling
    too_large = [usage for usage in usages if usage["shared"] > SHARED[usage["arch"]]]
    assert not too_large, too_large


@pytest.mark.parametrize(("stem", "chips"), kernel_files("attention"))
def test_attention_multiplies_with_the_chips_matrix_units(stem, chips):
    units = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
    for usage in compiled(stem, chips):
        assert usage["matrix"] == ("" if "fp32" in usage["variant"] else units[usage["arch"]]), usage


@functools.cache
def compiled(stem: str, chips: tuple[int, ...]) -> list[dict]:
    """Compiles the kernels of one file in another process: in this one Triton's interpreter may be on."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.resources", stem, "--json", "--arch", *map(str, chips)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]
