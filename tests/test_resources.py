"""Every Triton kernel, compiled for chips that need not be here: nothing spills, and shared memory suffices."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.resources.__main__ import stems

ROOT = Path(__file__).parent.parent
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block can have (CUDA programming guide, table 30)


@pytest.mark.slow
@pytest.mark.parametrize("stem", stems())
def test_nothing_spills_and_shared_memory_suffices(stem):
    usages = compiled(stem)
    assert {usage["arch"] for usage in usages} == SHARED.keys()
    spilling = [usage for usage in usages if usage["spills"]]
    assert not spilling, spilling
    too_large = [usage for usage in usages if usage["shared"] > SHARED[usage["arch"]]]
    assert not too_large, too_large


@pytest.mark.slow
def test_attention_multiplies_with_the_chips_matrix_units():
    units = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
    for usage in compiled("attention"):
        assert usage["matrix"] == ("" if "fp32" in usage["variant"] else units[usage["arch"]]), usage


@functools.cache
def compiled(stem: str) -> list[dict]:
    """In a process of its own: in this one the kernels may be interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.resources", stem, "--json"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]
