"""One whole run: measures the limits, runs all cases, writes the results file after each record, prints the tables."""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import limits, machine, report
from benchmarks.cases import cases
from benchmarks.grid import grid
from benchmarks.results import Record, Results
from benchmarks.run import Bench, explain, run_case
from benchmarks.timing import FULL, QUICK, Clock

QUICK_MINUTES = 1.6  # no case starts after this time; the one that runs may end
QUICK_COMPILES = frozenset({"add_layer_norm", "attention"})


def measure(options: argparse.Namespace) -> int:
    """Runs the benchmarks and returns the exit status: 0, 1 if anything of fastlm failed or was refused or a case could
    not be set up, 2 for wrong options."""
    started, device = time.monotonic(), machine.device()
    try:
        work = _work(options, device)
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    small = device.type == "cpu" and options.quick
    if small:
        torch.set_num_threads(1)  # with more threads, another process on one core delays all of them
    clock = Clock(device, QUICK if options.quick else FULL)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    results = _begin(options, limits.measure(clock, dtype, options.quick))
    minutes = options.minutes or (QUICK_MINUTES if small else float("inf"))
    measured = limits.Limits.from_json(results.limits)
    bench = Bench(
        clock,
        measured,
        dtype,
        started + 60 * minutes,
        not_compiled=not_compiled([case for case, _ in work], quick=small, first=options.compile == "first"),
        candidates=options.candidate,
    )
    folder = options.out or _default_folder(options.quick)
    file = folder / f"{results.created[:19].replace(':', '')}-{results.commit['sha'][:10]}.json"
    print(report.head(results) + "\n", flush=True)
    for case, run in work:
        _run(case, run, bench, results, file)
        results.write(file)
    if "clocks" in results.machine:
        results.machine["clocks"]["after"] = machine.clocks()
    results.write(file)
    return _end(results, file, options.plot)


def _run(case: Any, run: Callable[[Any, Bench], Iterator[Record]], bench: Bench, results: Results, file: Path) -> None:
    """Adds a case's records to the results and writes them, one by one, since a model's may take minutes.

    If the case cannot be set up, its name and the reason are added to `left_out`.
    """
    if bench.late():
        results.left_out.append(f"{case.op} {case.shape}: out of time")
        return
    print(f"{case.op} {case.shape}", file=sys.stderr, flush=True)
    try:
        for record in run(case, bench):
            results.records.append(record)
            results.write(file)
    except Exception as error:  # the next case may still run
        traceback.print_exc()
        results.left_out.append(f"{case.op} {case.shape}: {explain(error)[1]}")


def _work(options: argparse.Namespace, device: torch.device) -> list[tuple[Any, Callable]]:
    """Returns the cases to run, each with the function that runs it."""
    size, work = grid(device, quick=options.quick, sweeps=not options.no_sweeps), []
    if options.what in ("ops", "all") and (options.op or not options.model):
        work += [(case, run_case) for case in cases(size, options.op)]
    if options.what in ("models", "all") and (options.model or not options.op):
        from benchmarks.models import check_candidates, model_cases, run_model  # needs packages that the ops do not

        found = model_cases(size, options.model)
        check_candidates(options.candidate, found, device.type == "cuda")
        work += [(case, run_model) for case in found]
    if options.what == "feeding" or (options.what == "all" and not (options.op or options.model)):
        from benchmarks.feeding import feeding_cases, run_feeding  # needs packages that the ops do not

        work += [(case, run_feeding) for case in feeding_cases(size)]
    return work


def not_compiled(cases: Iterable[Any], *, quick: bool, first: bool) -> dict[Any, str]:
    """Returns the cases in which torch.compile is not timed, with the reason; first: all but the first of each op."""
    reasons, seen = {}, set()
    for case in cases:
        if quick and case.op not in QUICK_COMPILES:
            reasons[case] = f"--quick on a CPU compiles only {' and '.join(sorted(QUICK_COMPILES))}"
        elif first and case.op in seen:
            reasons[case] = "--compile first"
        seen.add(case.op)
    return reasons


def _begin(options: argparse.Namespace, measured: limits.Limits) -> Results:
    return Results(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        quick=options.quick,
        machine=machine.describe(),
        versions=machine.versions(),
        commit=machine.commit(),
        limits=measured.to_json(),
    )


def _default_folder(quick: bool) -> Path:
    """Returns the folder for results. Quick results go to build/, for they are not meant to be committed."""
    return machine.ROOT / ("build/benchmarks" if quick else f"benchmarks/results/{machine.slug()}")


def _end(results: Results, file: Path, plot: bool) -> int:
    print("\n" + report.terminal(results) + "\n")
    if results.left_out:
        print("left out:", *results.left_out, sep="\n  ")
    print(f"results: {file}")
    if plot:
        from benchmarks.plot import draw

        for drawn in draw(results, file.parent):
            print(f"plot: {drawn}")
    wrong = [r for r in results.records if r.ours and r.status in ("refused", "failed")]
    for r in wrong:
        print(f"OURS {r.status.upper()}: {r.name} {r.shape} {r.pass_} {r.candidate}: {r.reason}")
    return 1 if wrong or not all(reason.endswith("out of time") for reason in results.left_out) else 0
