"""Makes the README's tables of speed from the committed results."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from benchmarks import report
from benchmarks.machine import ROOT
from benchmarks.results import Results

RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"


def latest(folder: Path) -> list[Results]:
    """Returns the newest results of each op and model on each GPU, without those of --quick runs, newest runs first."""
    newest = []
    for gpu in sorted(p for p in folder.glob("*") if p.is_dir()):
        every = [Results.read(file) for file in gpu.glob("*.json")]
        of_gpu = [r for r in every if r.machine["device"] == "cuda" and not r.quick]
        seen: set[str] = set()
        for results in sorted(of_gpu, key=lambda r: r.created, reverse=True):
            records = [record for record in results.records if record.name not in seen]
            seen |= {record.name for record in records}
            newest += [dataclasses.replace(results, records=records)] if records else []
    return newest


def markdown(folder: Path = RESULTS) -> str:
    """Returns the tables of all GPUs; empty without results."""
    return "\n\n".join(report.summary(results) for results in latest(folder))


def show() -> int:
    """Prints the tables."""
    text = markdown()
    if text:
        print(text)
    return 0


def write(readme: Path = ROOT / "README.md", folder: Path = RESULTS) -> int:
    """Writes the tables into the README, between START and END."""
    before, start, rest = readme.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        print(f"tables: {readme} has no {START} ... {END} to write between", file=sys.stderr)
        return 2
    text = markdown(folder)
    readme.write_text(f"{before}{START}\n{text}\n{END}{after}" if text else f"{before}{START}\n{END}{after}")
    return 0
