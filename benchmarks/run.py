"""Runs one case: checks each candidate, then times it. A candidate that fails does not stop the others."""

from __future__ import annotations

import contextlib
import gc
import logging
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Case, Inputs, Run, Unavailable, leaves, with_gradients
from benchmarks.check import OURS, PEERS, Check, Refused, check_keep_rate
from benchmarks.limits import Limits
from benchmarks.results import Record
from benchmarks.timing import Clock

SETS = 3  # sets of inputs, used in turn
SEED = 20263


@dataclass
class Bench:
    """Holds the settings and limits that all measurements of one run share."""

    clock: Clock
    limits: Limits
    dtype: torch.dtype
    until: float = float("inf")  # the deadline, in seconds of time.monotonic()
    not_compiled: Mapping[Case, str] = field(default_factory=dict)  # cases without the "compile" peer: the reasons
    candidates: list[str] | None = None  # of models; None: all

    @property
    def device(self) -> torch.device:
        return self.clock.device

    def late(self) -> bool:
        """Returns whether the deadline has passed."""
        return time.monotonic() > self.until


def run_case(case: Case, bench: Bench) -> Iterator[Record]:
    """Yields the records of one case, candidate by candidate."""
    torch._dynamo.reset()  # otherwise torch.compile would see the shape change and compile for dynamic shapes
    generator = torch.Generator(bench.device).manual_seed(SEED)
    sets = [with_gradients(case.inputs(generator), case.dtype(bench.dtype)) for _ in range(SETS)]
    trial = _Trial(case, bench, sets, Check(case, sets[0], generator), generator)
    for backend, reason in case.backends(case.dtype(bench.dtype), bench.device).items():
        yield from trial.ours(backend, reason)
    yield from trial.parts()
    plain = trial.check if not case.dropout_p else Check(case.without_dropout(), sets[0], generator)
    for i, peer in enumerate(case.peers()):
        if peer.name == "compile" and case in bench.not_compiled:
            yield from trial.records(peer.name, "skipped", bench.not_compiled[case])
            continue
        without = case.without_dropout().peers()[i]
        yield from trial.peer(peer.name, peer.build, plain, without.build)


@dataclass
class _Trial:
    """Measures one case. Its methods return one record per pass of a candidate."""

    case: Case
    bench: Bench
    sets: list[Inputs]
    check: Check
    generator: torch.Generator

    @property
    def dtype(self) -> torch.dtype:
        return self.case.dtype(self.bench.dtype)

    def ours(self, backend: str, reason: str | None) -> list[Record]:
        if reason is not None:
            return self.records(backend, "skipped", reason, ours=True)

        def run(t: Inputs) -> Tensor:
            return self.case.ours(t, backend)

        return self._guarded(backend, True, lambda: (run, self.check.checked_error(run, OURS)))

    def peer(
        self, name: str, build: Callable[[Inputs], Run], plain: Check, build_plain: Callable[[Inputs], Run]
    ) -> list[Record]:
        def prepare() -> tuple[Run, float]:
            run = build(self.sets[0])
            error = plain.checked_error(build_plain(self.sets[0]), PEERS)
            if self.case.dropout_p:
                check_keep_rate(self.case, run, self.sets[0])
            return run, error

        return self._guarded(name, False, prepare)

    def parts(self) -> list[Record]:
        """Returns a record with the sum of the times of the case's `parts`: a lower bound, not an implementation."""
        times = {}
        for name, (call, count) in self.case.parts(self.sets[0]).items():
            samples = self.bench.clock.samples(lambda _, call=call: call(), lambda i: None)
            times[name] = round(statistics.median(samples) * count, 3)
        if not times:
            return []
        record = self._record("parts", "both", False, "timed", samples_us=(round(sum(times.values()), 3),))
        return [replace(record, parameters=record.parameters | {"parts_us": times})]

    def _guarded(self, name: str, ours: bool, prepare: Callable[[], tuple[Run, float]]) -> list[Record]:
        try:
            with quiet():
                run, error = prepare()
                return self._times(name, ours, run, error)
        except Unavailable as reason:
            return self.records(name, "skipped", str(reason), ours)
        except Refused as reason:
            return self.records(name, "refused", str(reason), ours)
        except Exception as error:  # other packages may raise any exception
            status, reason = explain(error)
            return self.records(name, status, reason, ours)
        finally:
            gc.collect()
            if self.bench.clock.on_gpu:
                torch.cuda.empty_cache()

    def _times(self, name: str, ours: bool, run: Run, error: float) -> list[Record]:
        call, prepare = self._pass(run, self.case.passes[-1])
        extra = self.bench.clock.extra_bytes(lambda: call(prepare(0)))
        done = []
        for pass_ in self.case.passes:
            samples = self.bench.clock.samples(*self._pass(run, pass_))
            record = self._record(name, pass_, ours, "timed", samples_us=samples, error=round(error, 3))
            done.append(replace(record, extra_bytes=extra) if pass_ == self.case.passes[-1] else record)
        return done

    def _pass(self, run: Run, pass_: str) -> tuple[Callable[[Any], Any], Callable[[int], Any]]:
        """Returns the function that is timed, and the one that prepares its argument for sample i."""
        if pass_ in ("forward", "step"):
            return run, self._set
        if pass_ == "backward":
            return self._backward, lambda i: (run(self._set(i)), self._set(i))
        return lambda t: self._both(run, t), self._set

    def _set(self, i: int) -> Inputs:
        return self.sets[i % len(self.sets)]

    def _backward(self, state: tuple[Tensor, Inputs]) -> tuple[Tensor, ...]:
        out, t = state
        return torch.autograd.grad(out, list(leaves(t).values()), self.check.grad_like(out))

    def _both(self, run: Run, t: Inputs) -> tuple[Any, ...]:
        out = run(t)
        return out.detach(), self._backward((out, t))

    def records(self, name: str, status: str, reason: str, ours: bool = False) -> list[Record]:
        return [self._record(name, pass_, ours, status, reason=reason) for pass_ in self.case.passes]

    def _record(self, name: str, pass_: str, ours: bool, status: str, **more: Any) -> Record:
        work = self._work(pass_)
        lower_bound, bound = self.bench.limits.lower_bounds([w for w in work if any(w)])
        moved, flops, exponentials = (sum(column) for column in zip(*work, strict=True))
        return Record(
            kind="op",
            name=self.case.op,
            shape=self.case.shape,
            dtype=str(self.dtype).removeprefix("torch."),
            pass_=pass_,
            candidate=name,
            ours=ours,
            status=status,
            parameters=self.case.parameters(),
            bytes=moved,
            flops=flops,
            exponentials=exponentials,
            lower_bound_us=round(lower_bound, 3),
            bound=bound,
            **more,
        )

    def _work(self, pass_: str) -> list[tuple[int, int, int]]:
        """Returns (bytes, FLOPs of matrix products, exponentials) of a pass, or of each of both passes."""
        cost, exponentials = self.case.cost(self.dtype), self.case.exponentials()
        forward = (cost.forward_bytes, cost.forward_flops * self.case.products, exponentials[0])
        backward = (cost.backward_bytes, cost.backward_flops * self.case.products, exponentials[1])
        return {"backward": [backward], "both": [forward, backward]}.get(pass_, [forward])


def explain(error: Exception) -> tuple[str, str]:
    """Returns the status and a reason of one line for a candidate's exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines[0] if lines else "no message")[:160]
    if isinstance(error, torch.OutOfMemoryError):
        return "failed", "out of memory"
    if "No available kernel" in str(error) or "No viable backend" in str(error):
        return "skipped", "has no kernel for this call"
    where = traceback.extract_tb(error.__traceback__)[-1]
    return "failed", f"{type(error).__name__}: {text} ({where.name}, line {where.lineno})"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the warnings and logs of other packages. A record's reason says why a package cannot run."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
