"""Builds, tests and measures on a GPU within a time limit, and writes a summary page.

Each stage is its own process and gets a share of the remaining time. If a stage fails or takes too long, the page says
so and the next stage starts. The page and the results are rewritten after each stage, so that an interrupted visit
keeps them. Before the build nothing is installed, so this file needs only Python's standard library. No stage needs a
network. The tests need pytest and hypothesis; if these are missing, only that stage fails. With pytest-xdist they use
all cores but one: on 16 cores and an H200 they took 92 seconds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
GRACE = 5.0  # seconds between SIGTERM and SIGKILL
PREDICTED = "predicted.json"  # beside the folder of results, which it is no part of
TAIL = 25  # lines of a failed stage's log that go into the page


@dataclass(frozen=True)
class Stage:
    """Describes one process of the visit.

    `share` is its weight: the remaining time is divided among the remaining stages in proportion to their weights.
    "{minutes}" in the command is replaced by 85 % of the stage's time, so that a command that limits its own time ends
    before it is killed.
    """

    name: str
    command: Sequence[str]
    share: float


@dataclass(frozen=True)
class Outcome:
    stage: Stage
    status: str  # "ok", "failed (1)", "out of time", "not started"
    seconds: float
    log: Path


def stages(out: Path) -> list[Stage]:
    """Returns the stages of a visit, in order."""
    python = sys.executable
    pip = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "--editable", "."]
    measure = ["--out", str(out / "results"), "--minutes", "{minutes}"]
    workers = ["-n", str(max(1, (os.cpu_count() or 1) - 1))] if importlib.util.find_spec("xdist") else []
    return [
        Stage("build", pip, 3),
        Stage("info", [python, "-m", "fastlm.cli", "info"], 1),
        Stage("tests", [python, "-P", "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *workers], 3),
        Stage("ops", [python, "-m", "benchmarks", "ops", "--no-sweeps", "--compile", "first", "--plot", *measure], 4),
        Stage("models", [python, "-m", "benchmarks", "models", *measure], 3),
    ]


def visit(out: Path, minutes: float, planned: Sequence[Stage] | None = None, predicted: Path | None = None) -> int:
    """Runs the stages; writes logs, results and summary.md into `out`. Returns 0 if all stages succeeded, else 1.

    `predicted` is a file of `python -m benchmarks predict --json`, made beforehand, because that needs no GPU. The page
    then has its times beside the measured ones.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if predicted is not None:
        shutil.copyfile(predicted, out / PREDICTED)
    planned = stages(out) if planned is None else planned
    until = time.monotonic() + 60 * minutes - GRACE
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that the running stage is ended, too
    outcomes: list[Outcome] = []
    for i, stage in enumerate(planned):
        left = until - time.monotonic()
        limit = left * stage.share / sum(p.share for p in planned[i:])
        outcomes.append(_run(stage, limit, out))
        last = outcomes[-1]
        print(f"{stage.name}: {last.status}, {last.seconds:.0f} s ({last.log})", flush=True)
        _write(out, outcomes, planned[i + 1 :], minutes)
    print((out / "summary.md").read_text())
    return 0 if all(o.status == "ok" for o in outcomes) else 1


def _run(stage: Stage, limit: float, out: Path) -> Outcome:
    log = out / f"{stage.name}.log"
    if limit <= 0:
        return Outcome(stage, "not started", 0.0, log)
    command = [word.format(minutes=f"{0.85 * limit / 60:.3f}") for word in stage.command]
    started = time.monotonic()
    with log.open("w") as file:
        file.write(f"$ {shlex.join(command)}\n")
        file.flush()
        try:
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        except OSError as error:
            file.write(f"{error}\n")
            return Outcome(stage, "failed (it could not be started)", 0.0, log)
        try:
            code = process.wait(limit)
            status = "ok" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            status = "out of time"
        finally:
            _end(process)
    return Outcome(stage, status, time.monotonic() - started, log)


def _end(process: subprocess.Popen) -> None:
    """Ends the process and all processes that it started."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def _write(out: Path, outcomes: Sequence[Outcome], to_come: Sequence[Stage], minutes: float) -> None:
    """Writes summary.md, atomically."""
    lines = [f"# A visit of {minutes:g} minutes", "", "| stage | outcome | seconds |", "|---|---|---:|"]
    lines += [f"| {o.stage.name} | {o.status} | {o.seconds:.0f} |" for o in outcomes]
    lines += [f"| {stage.name} | not yet | |" for stage in to_come]
    for o in outcomes:
        if o.status != "ok" and o.log.exists():
            text = o.log.read_text(errors="replace").splitlines()
            lines += ["", f"## {o.stage.name}: {o.status}", "", "```", *text[-TAIL:], "```"]
        elif o.stage.name == "tests":
            lines += ["", f"tests: {o.log.read_text(errors='replace').splitlines()[-1]}"]
    for file in sorted((out / "results").glob("*.json")):
        lines += ["", f"## {file.name}", "", _results(file)]
        if (out / PREDICTED).exists():
            lines += ["", f"### {file.name}: predicted for an H100 SXM5, beside measured", "", _beside(file, out)]
    temporary = out / ".summary.md"
    temporary.write_text("\n".join(lines) + "\n")
    temporary.replace(out / "summary.md")


def _results(file: Path) -> str:
    try:
        from benchmarks import report, results

        return report.summary(results.Results.read(file))
    except Exception as error:  # without torch the page has no table
        return f"cannot be read: {error}"


def _beside(file: Path, out: Path) -> str:
    """Returns a table of predicted and measured times."""
    try:
        from benchmarks import results
        from benchmarks.predict import report, rows

        return report.beside_measured(rows.read(out / PREDICTED), results.Results.read(file))
    except Exception as error:  # as above
        return f"cannot be read: {error}"
