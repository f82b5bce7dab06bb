"""The cases for pytest-benchmark: pytest benchmarks --benchmark-only.

A round is forward and backward of one set of inputs, or one step of an optimizer. On a GPU it ends with a
synchronization, so it includes the host's time, and caches are not flushed. `python -m benchmarks` measures the GPU
alone, with flushed caches, and compares with the machine's limits.
"""

from __future__ import annotations

import functools

import pytest
import torch

from benchmarks import machine
from benchmarks.case import Case, Inputs, Run, leaves, with_gradients
from benchmarks.cases import cases
from benchmarks.check import OURS, Check
from benchmarks.grid import grid
from benchmarks.run import SEED
from fastlm import backends

DEVICE = machine.device()
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
CASES = cases(grid(DEVICE, quick=True))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case.op}-{case.shape}".replace(" ", "_"))
def check(request) -> Check:
    case, generator = request.param, torch.Generator(DEVICE).manual_seed(SEED)
    return Check(case, with_gradients(case.inputs(generator), case.dtype(DTYPE)), generator)


def _ours(case: Case, backend: str, t: Inputs) -> torch.Tensor:
    return case.ours(t, backend)


def _round(check: Check, run: Run, inputs: Inputs) -> None:
    out = run(inputs)
    if check.case.passes != ("step",):
        torch.autograd.grad(out, list(leaves(inputs).values()), check.grad_like(out))
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize("candidate", [*backends.NAMES[1:], "eager"])
def test_op(benchmark, check, candidate):
    benchmark.group = f"{check.case.op} {check.case.shape}"
    if candidate == "eager":
        run = check.case.eager
    else:
        reason = check.case.backends(check.case.dtype(DTYPE), DEVICE).get(candidate, f"not timed on {DEVICE.type}")
        if reason is not None:
            pytest.skip(reason)
        run = functools.partial(_ours, check.case, candidate)
        check.checked_error(run, OURS)
    # On a copy: an optimizer changes its inputs, which the next candidate is checked with.
    benchmark(_round, check, run, with_gradients(check.inputs))
