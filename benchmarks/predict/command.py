"""Runs `python -m benchmarks predict`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks import machine
from benchmarks.case import Case
from benchmarks.cases import cases
from benchmarks.grid import Grid
from benchmarks.predict import report, rows
from benchmarks.predict.build import HERE, MissingTool
from benchmarks.predict.chip import Chip, changed
from benchmarks.predict.figures import not_known
from benchmarks.predict.launches import Launchers
from benchmarks.predict.rows import Row
from benchmarks.results import Results, ResultsError
from fastlm import backends

BACKENDS = ("cuda", "triton")
ROOT = machine.ROOT


def run(options: argparse.Namespace) -> int:
    """Prints predicted times, and writes them as JSON if asked to. Returns 0, or 2 after an error of the caller."""
    if backends.interpreted():
        print("predict: kernels cannot be compiled while TRITON_INTERPRET=1: unset it", file=sys.stderr)
        return 2
    try:
        chip = changed(options.set)
        chosen = _cases(options)
        measured = Results.read(options.beside) if options.beside else None
        found = _print_rows(chosen, options, chip)
        before = _of_revision(options) if options.against else {}
    except (ValueError, MissingTool, OSError, ResultsError, subprocess.CalledProcessError) as error:
        print(f"predict: {error}", file=sys.stderr)
        return 2
    predicted = {row.key: row.predicted_us for row in found}
    if options.json:
        rows.write(options.json, rows.to_json(found, chip, machine.commit()))
    if options.against:
        print(f"\nPredicted, not measured:\n\n{report.changes(before, predicted, options.against)}")
    if measured is not None:
        print(f"\n{report.beside_measured(predicted, measured)}")
    if not_known:
        print(f"predict: no figures for {', '.join(not_known)}: counted as ALU instructions", file=sys.stderr)
    return 0


def _cases(options: argparse.Namespace) -> list[Case]:
    """Returns the benchmarks' cases on a GPU. Raises ValueError if the options leave none."""
    every = cases(Grid(options.tokens, sweeps=options.sweeps), options.op)
    found = [case for case in every if all(word in case.shape for word in options.shape or ())]
    if not found:
        raise ValueError(f"no shape contains {', '.join(options.shape)}: {', '.join(c.shape for c in every)}")
    return found


def _print_rows(chosen: list[Case], options: argparse.Namespace, chip: Chip) -> list[Row]:
    print(report.HEAD, flush=True)
    found = []
    for row in predicted_rows(chosen, options.backend or BACKENDS, chip, options.minutes):
        found.append(row)
        print(report.line(row), flush=True)
        if options.verbose or options.hot:
            print(report.details(row, options.hot), flush=True)
    return found


def predicted_rows(
    chosen: list[Case], names: tuple[str, ...], chip: Chip, minutes: float | None = None, checkout: Path = ROOT
) -> Iterator[Row]:
    """Yields the rows of the cases. What cannot be predicted is named on stderr, with the reason."""
    until = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    launchers = Launchers(checkout, {case.spec.kernels for case in chosen})
    for n, case in enumerate(chosen):
        if time.monotonic() > until:
            print(f"predict: out of time: {len(chosen) - n} cases left out", file=sys.stderr)
            return
        for backend in names:
            try:
                yield from _rows_of(launchers, case, backend, chip)
            except (RuntimeError, ValueError) as error:
                print(f"predict: {case.op} {case.shape} {backend} is not predicted: {error}", file=sys.stderr)


def _rows_of(launchers: Launchers, case: Case, backend: str, chip: Chip) -> Iterator[Row]:
    for part in launchers.passes(case, backend):
        predictions = rows.predict_parts(part.launches, part.most_bytes, chip)
        yield Row(case.op, case.shape, part.name, backend, part.flops, predictions)


def _of_revision(options: argparse.Namespace) -> Mapping[tuple[str, str, str, str], float]:
    """Returns what this model predicts for the same cases of another revision, which gets a worktree for the time."""
    with tempfile.TemporaryDirectory() as folder:
        other, file = Path(folder) / "checkout", Path(folder) / "predicted.json"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(other), options.against], check=True)
        try:
            given = {name: getattr(options, name) for name in ("op", "shape", "backend", "tokens", "sweeps", "set")}
            command = [sys.executable, "-P", str(HERE / "revision.py"), json.dumps(given), str(file)]
            environment = {**os.environ, "PYTHONPATH": str(other)}
            subprocess.run(command, check=True, cwd=other, env=environment, stdout=subprocess.DEVNULL)
            return rows.read(file)
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True)
