"""Prints predicted times, two revisions side by side, and predicted beside measured times."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.predict.chip import SCALE
from benchmarks.predict.rows import Row, short_name
from benchmarks.report import markdown
from benchmarks.results import Results

Key = tuple[str, str, str, str]
HEAD = (
    "Predicted for an H100 SXM5 from machine code, not measured (docs/predicted.md). "
    f"Times contain a scale of {SCALE}; differences below 4 % mean nothing."
)
COLUMNS = ("op", "shape", "pass", "backend")


def line(row: Row) -> str:
    """Describes a row: its predicted time, the bound of HBM, and the busiest resource of its longest launch."""
    p = row.longest.prediction
    speed = f"{row.flops / row.predicted_us / 1e6:5.0f} TFLOP/s" if row.flops else " " * 13
    return (
        f"{row.op:22} {row.shape:26} {row.pass_:8} {row.backend:6} predicted {row.predicted_us:9.1f} us  {speed}  "
        f"HBM bound {row.bound_us:8.1f} us  {p.busiest} {p.resources[p.busiest]:.0%} in use"
        + (", branches on data" if any(part.prediction.guesses for part in row.parts) else "")
    )


def details(row: Row, hot: int) -> str:
    """Describes each launch of a row, with the `hot` costliest instructions of its hot loop."""
    lines = []
    for part in row.parts:
        p = part.prediction
        lines.append(f"{short_name(p.kernel.name)}: {part.count} x {p.scaled_us:.1f} us predicted")
        lines += p.details().splitlines() + (p.hot_spots(hot).splitlines() if hot else [])
    return "\n".join("    " + text for text in lines)


def changes(before: Mapping[Key, float], after: Mapping[Key, float], revision: str) -> str:
    """Returns a table of what a revision predicted and what this checkout predicts, for rows that both have."""
    lines = [
        [*key, f"{before[key]:.1f}", f"{us:.1f}", f"{us / before[key] - 1:+.1%}"]
        for key, us in after.items()
        if key in before
    ]
    return markdown(([*COLUMNS, f"{revision}, predicted us", "this checkout, predicted us", "change"], lines))


def beside_measured(predicted: Mapping[Key, float], measured: Results) -> str:
    """Returns a table of predicted and measured times. Rows that only one of them has are left out."""
    lines = []
    for record in measured.records:
        key = (record.name, record.shape, record.pass_, record.candidate)
        if record.ours and record.status == "timed" and key in predicted:
            us, ours = record.median_us, predicted[key]
            lines.append([*key, f"{ours:.1f}", f"{us:.1f}", f"{us / ours:.2f}"])
    return markdown(([*COLUMNS, "predicted us", "measured us", "measured / predicted"], lines))
