"""Compares two files of results and separates changes from noise.

A change is a ratio of medians. It is reported as faster or slower if it exceeds the noise. The noise is at least 1 %,
and otherwise the sum of three terms: half of each run's interquartile range, relative to its median, and the relative
difference of the limit that bounds the op (a warmer GPU is slower in copies, too).
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.limits import Limits
from benchmarks.report import aligned, busy
from benchmarks.results import Record, Results

MIN_NOISE = 0.01


@dataclass(frozen=True)
class Change:
    before: Record
    after: Record
    noise: float

    @property
    def relative(self) -> float:
        """Returns the change of the median as a fraction: -0.1 means 10 % less time."""
        return self.after.median_us / self.before.median_us - 1

    @property
    def verdict(self) -> str:
        if abs(self.relative) <= self.noise:
            return "same"
        return "slower" if self.relative > 0 else "faster"


def changes(before: Results, after: Results) -> list[Change]:
    """Returns a Change for each measurement that both runs timed."""
    old = {r.key: r for r in before.timed()}
    drifts = _drifts(Limits.from_json(before.limits), Limits.from_json(after.limits))
    return [Change(old[r.key], r, _noise(old[r.key], r, drifts)) for r in after.timed() if r.key in old]


def _noise(a: Record, b: Record, drifts: dict[str | None, float]) -> float:
    spread = sum((high - low) / 2 / r.median_us for r in (a, b) for low, high in (r.quartiles_us,))
    return max(MIN_NOISE, spread + drifts[b.bound])


def _drifts(a: Limits, b: Limits) -> dict[str | None, float]:
    """Returns the relative difference of each limit. Records without a bound (None) get that of the product."""

    def drift(x: float | None, y: float | None) -> float:
        return abs(y / x - 1) if x and y else 0.0

    matrix = drift(a.gemm_flops, b.gemm_flops)
    copy = drift(a.copy_rate, b.copy_rate)
    return {"copy": copy, "matrix": matrix, "exponential": drift(a.exponentials, b.exponentials), None: matrix}


def report(before: Results, after: Results) -> str:
    found = changes(before, after)
    lines = [f"before: {_origin(before)}", f"after:  {_origin(after)}"]
    if before.machine["name"] != after.machine["name"]:
        lines.append("The machines differ, so the changes are not those between two commits.")
    for name, results in (("before", before), ("after", after)):
        if busy(results):
            lines.append(f"{name} was measured on a busy machine: changes may come from other processes")
    moved = sorted((c for c in found if c.verdict != "same"), key=lambda c: -abs(c.relative))
    header = ["shape", "pass", "candidate", "before us", "after us", "change", "noise", "verdict"]
    rows = [_row(c) for c in moved]
    lines += ["", *(aligned((header, rows)) if rows else ["No change is beyond the noise."]), ""]
    lines.append(f"{len(found)} timed in both, {len(found) - len(moved)} of them the same within the noise")
    lines += _one_sided(before, after)
    return "\n".join(lines)


def _one_sided(before: Results, after: Results) -> list[str]:
    """Lists the measurements that only one of the two runs has, with the later run's reason for leaving them out."""
    old, new = ({r.key: r for r in results.timed()} for results in (before, after))
    status = {r.key: r for r in after.records}
    lines = []
    for key in old.keys() - new.keys():
        now = status.get(key)
        lines.append(f"only before: {' '.join(key[1:])}" + (f" (now {now.status}: {now.reason})" if now else ""))
    lines += [f"only after: {' '.join(key[1:])}" for key in new.keys() - old.keys()]
    return sorted(lines)


def _row(c: Change) -> list[str]:
    r = c.after
    us = [f"{x.median_us:,.1f}" for x in (c.before, r)]
    return [f"{r.name} {r.shape}", r.pass_, r.candidate, *us, f"{c.relative:+.1%}", f"{c.noise:.1%}", c.verdict]


def _origin(results: Results) -> str:
    return f"{results.machine['name']}, {results.created}, commit {results.commit['sha'][:10]}, {results.command}"
