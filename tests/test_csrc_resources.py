"""The CUDA C++ kernels, compiled by nvcc, spill no registers and stay within the committed budget (csrc.tsv).

`make test` compiles them for one target, `make test-all` for all.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.resources._csrc import BUDGET, library

ROOT = Path(__file__).parent.parent
REFRESH = "to accept this as the new budget: python -m benchmarks.resources._csrc --budget"

TARGETS = {"90a": {"90a"}, "all": {"80", "90a", "100", "120"}}


@pytest.fixture(scope="module", params=["90a", pytest.param("all", marks=pytest.mark.slow)])
def found(request) -> list[dict]:
    compiled = library(request.param)
    if compiled is None:
        pytest.skip(f"csrc/ is not compiled for {request.param}: make nvcc-{request.param}, where there is an nvcc")
    command = [sys.executable, "-m", "benchmarks.resources._csrc", compiled, "--json"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    usages = [json.loads(line) for line in run.stdout.splitlines()]
    assert {usage["arch"] for usage in usages} == TARGETS[request.param]
    return usages


@pytest.fixture(scope="module")
def budget() -> dict[str, dict[str, int]]:
    with BUDGET.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {row.pop("kernel"): {name: int(value) for name, value in row.items()} for row in rows}


def test_nothing_spills(found):
    spilling = [usage for usage in found if usage["spills"]]
    assert not spilling, spilling


def test_the_budget_names_every_kernel(found, budget):
    assert {usage["kernel"] for usage in found} == budget.keys(), REFRESH


def test_no_kernel_exceeds_its_budget(found, budget):
    """The budget is from nvcc 13.0; another release may allocate a few more registers."""
    over = []
    for usage in found:
        allowed = budget[usage["kernel"]]
        if usage["registers"] > allowed[usage["arch"]] or usage["shared"] > allowed["shared"]:
            over.append(f"{usage}; budget: {allowed}")
    assert not over, "\n".join([*over, REFRESH])


def test_one_more_block_would_not_fit(found):
    """The printed occupancy is the largest that the chips' limits allow: 65536 registers, 32 CTAs, 64 warps per SM."""
    for usage in (u for u in found if u["arch"] in ("80", "90a", "100")):
        block = usage["threads"] // 32
        assert usage["warps"] % block == 0
        assert usage["warps"] * 32 * usage["registers"] <= 65536
        more = usage["warps"] + block
        # Registers are allocated in units of 256 per warp. No kernel here has much static shared memory.
        registers = more * -(-usage["registers"] * 32 // 256) * 256
        assert more > 64 or more // block > 32 or registers > 65536, usage
