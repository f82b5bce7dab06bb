"""Whether a result is right: asked of each candidate before it is timed.

The rule is that of the tests: against float64 on the same rounded inputs, the largest and the root-mean-square error of
the output and of every gradient, in units of the naive computation's in the same dtype plus a quarter of a unit in the
last place of the norm. Ours may reach 2 units; peers 16, which only a wrong result exceeds: what they have goes into
the results. Masks that others draw cannot be compared element by element: they are held to the rule without dropout,
and then to a keep rate within 0.005 of what was asked for (rounding to sixteenths, as one backend does, is 0.025 off).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.case import Case, Inputs, Run, leaves, randn, with_gradients

OURS, PEERS = 2.0, 16.0
KEEP_RATE = 0.005


class Refused(Exception):
    """Why a candidate's times are not reported."""


class Check:
    """The exact results and the yardstick of one case, for all its candidates."""

    def __init__(self, case: Case, t: Inputs, generator: torch.Generator):
        self.case, self.inputs = case, with_gradients(t)  # a copy: what is timed may change its own
        dtype = next(iter(leaves(t).values())).dtype
        shape = case.output_shape(t)
        grad = None if shape == () else randn(generator, *shape).to(dtype)
        self.grad = None if grad is None else case.weigh(t, grad)
        part, mask = case.excerpt(t), case.mask(case.excerpt(t))
        part_grad = None if grad is None else case.excerpt_of({"out": self.grad}, part)["out"]
        self._exact = case.naive_results(with_gradients(part, torch.float64), mask, part_grad)
        self._yardstick = case.naive_results(with_gradients(part), mask, part_grad)
        self._part = part

    def grad_like(self, out: Tensor) -> Tensor | None:
        return None if self.grad is None else self.grad.to(out.dtype)

    def error(self, run: Run) -> float:
        """In units of the yardstick's, the largest of output and gradients."""
        actual = self.case.results(run, with_gradients(self.inputs), self.grad)
        if self.grad is not None:
            actual["out"] = self.case.weigh(self.inputs, actual["out"])
        actual = self.case.excerpt_of(actual, self._part)
        return max(units(name, actual[name], self._yardstick[name], exact) for name, exact in self._exact.items())

    def held(self, run: Run, bound: float) -> float:
        """The error; raises Refused where it is above `bound` units."""
        error = self.error(run)
        if not error <= bound:
            raise Refused(f"wrong: its error is {error:.3g} times the naive computation's, over {bound:g}")
        return error


def units(name: str, actual: Tensor, yardstick: Tensor, exact: Tensor) -> float:
    """The larger of the largest and the RMS error in units of the yardstick's; infinite where not finite."""
    if actual.shape != exact.shape:
        raise Refused(f"wrong: {name} has shape {tuple(actual.shape)}, not {tuple(exact.shape)}")
    error, allowed = actual.double() - exact, yardstick.double() - exact
    worst = 0.0
    for norm in (lambda x: x.abs().max(), lambda x: x.square().mean().sqrt()):
        floor = torch.finfo(yardstick.dtype).eps / 4 * norm(exact)
        worst = max(worst, torch.nan_to_num(norm(error) / (norm(allowed) + floor), nan=torch.inf).item())
    return worst


def check_keep_rate(case: Case, run: Run, t: Inputs) -> None:
    """Raises Refused where dropout keeps another fraction than it was asked to."""
    with torch.no_grad():
        kept = case.kept(t, run(case.probe(t)))
    rate, asked = kept.double().mean().item(), 1 - case.dropout_p
    chance = 4 * math.sqrt(asked * (1 - asked) / kept.numel())  # four standard errors of so many draws
    if not abs(rate - asked) <= KEEP_RATE + chance:
        raise Refused(f"rounds: it keeps {rate:.4f} where {asked:g} was asked for")
