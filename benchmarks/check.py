"""Checks each candidate's results before it is timed.

The rule resembles that of the tests (tests/checks.py). `exact` is the naive computation in float64 on the same rounded
inputs, `yardstick` the naive computation in the dtype of the run. For the output and each gradient, and for norm = max
and norm = RMS:

    error = norm(actual - exact) / (norm(yardstick - exact) + eps / 4 * norm(exact))

fastlm's error may be at most 2. A peer's error is recorded and may be at most 16; only a wrong result exceeds that.
Peers draw dropout masks of their own, so they are compared without dropout, and their keep rate must be within 0.005 of
1 - dropout_p. (cuDNN rounds that to sixteenths: for dropout_p = 0.1 it is off by 0.025.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.case import Case, Inputs, Run, leaves, randn, with_gradients

OURS, PEERS = 2.0, 16.0
KEEP_RATE = 0.005


class Refused(Exception):
    """Says why a candidate's times are not reported."""


class Check:
    """Holds the exact results and the yardstick of one case, which all its candidates are compared with."""

    def __init__(self, case: Case, t: Inputs, generator: torch.Generator):
        self.case, self.inputs = case, with_gradients(t)  # a copy: candidates may change their inputs in place
        dtype = next(iter(leaves(t).values())).dtype
        shape = case.output_shape(t)
        grad = None if shape == () else randn(generator, *shape).to(dtype)
        self.grad = None if grad is None else case.zero_padding(t, grad)
        part, mask = case.excerpt(t), case.mask(case.excerpt(t))
        part_grad = None if grad is None else case.excerpt_results({"out": self.grad}, part)["out"]
        self._exact = case.naive_results(with_gradients(part, torch.float64), mask, part_grad)
        self._yardstick = case.naive_results(with_gradients(part), mask, part_grad)
        self._part = part

    def grad_like(self, out: Tensor) -> Tensor | None:
        return None if self.grad is None else self.grad.to(out.dtype)

    def error(self, run: Run) -> float:
        """Returns the largest error of output and gradients; the top of this file defines the error."""
        actual = self.case.results(run, with_gradients(self.inputs), self.grad)
        if self.grad is not None:
            actual["out"] = self.case.zero_padding(self.inputs, actual["out"])
        actual = self.case.excerpt_results(actual, self._part)
        return max(
            relative_error(name, actual[name], self._yardstick[name], exact) for name, exact in self._exact.items()
        )

    def checked_error(self, run: Run, bound: float) -> float:
        """Returns the error; raises Refused if it exceeds `bound`."""
        error = self.error(run)
        if not error <= bound:
            raise Refused(f"wrong: its error is {error:.3g} times the naive computation's, over {bound:g}")
        return error


def relative_error(name: str, actual: Tensor, yardstick: Tensor, exact: Tensor) -> float:
    """Returns the error of one tensor, as the top of this file defines it; infinite if a value is not finite."""
    if actual.shape != exact.shape:
        raise Refused(f"wrong: {name} has shape {tuple(actual.shape)}, not {tuple(exact.shape)}")
    error, allowed = actual.double() - exact, yardstick.double() - exact
    worst = 0.0
    for norm in (lambda x: x.abs().max(), lambda x: x.square().mean().sqrt()):
        floor = torch.finfo(yardstick.dtype).eps / 4 * norm(exact)
        worst = max(worst, torch.nan_to_num(norm(error) / (norm(allowed) + floor), nan=torch.inf).item())
    return worst


def check_keep_rate(case: Case, run: Run, t: Inputs) -> None:
    """Raises Refused if the fraction that dropout keeps is not 1 - dropout_p."""
    with torch.no_grad():
        kept = case.kept(t, run(case.probe(t)))
    rate, asked = kept.double().mean().item(), 1 - case.dropout_p
    chance = 4 * math.sqrt(asked * (1 - asked) / kept.numel())  # four standard errors
    if not abs(rate - asked) <= KEEP_RATE + chance:
        raise Refused(f"rounds: it keeps {rate:.4f} where {asked:g} was asked for")
