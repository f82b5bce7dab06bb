"""A run's report and loss curve, for people to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # without pyplot: no global state, no display

# How a figure is called in the report, and written.
FIGURES = {
    "loss": ("loss", ".3f"),
    "perplexity": ("perplexity", ".1f"),
    "bits_per_byte": ("bits a byte", ".3f"),
    "mlm_loss": ("masked loss", ".3f"),
    "nsp_loss": ("next-sentence loss", ".3f"),
    "masked_accuracy": ("masked accuracy", ".1%"),
    "nsp_accuracy": ("next-sentence accuracy", ".1%"),
}


def markdown(result: dict[str, Any]) -> str:
    """The report as Markdown that also reads well in a terminal.

    result["scores"]: for each model, its figures on the held-out text; result["examples"]: lines of text.
    """
    head = (
        f"# {result['model']}: {result['parameters']:,} parameters, {result['steps']:,} updates, "
        f"{result['tokens']:,} tokens, {result['training_seconds'] / 60:.1f} minutes"
    )
    examples = [f"- {example}" for example in result["examples"]]
    lines = [head, "", *_table(result["scores"]), "", f"## {result['examples_title']}", "", *examples]
    return "\n".join(lines) + "\n"


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def plot(records: list[dict[str, Any]], file: Path, *, title: str) -> None:
    """The loss curve as a PNG: each update, a smoothed line, and the validations."""
    steps, losses = [r["step"] for r in records], [r["loss"] for r in records]
    validated = [r for r in records if "validation_loss" in r]
    figure = Figure(figsize=(7, 4))  # no layout engine: it would draw twice
    axes = figure.subplots()
    axes.plot(steps, losses, color="C0", alpha=0.25, linewidth=0.8, label="training, each update")
    axes.plot(steps, _smoothed(losses), color="C0", label="training, smoothed")
    if validated:
        axes.plot(
            [r["step"] for r in validated],
            [r["validation_loss"] for r in validated],
            "o-",
            color="C1",
            label="validation",
        )
    axes.set(title=title, xlabel="update", ylabel="loss (nats)")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    temporary = file.with_name("." + file.name)
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(file)


def _smoothed(values: list[float], weight: float = 0.97) -> list[float]:
    """Exponential moving average, without the bias of its start."""
    smooth, total, out = 0.0, 0.0, []
    for value in values:
        smooth, total = weight * smooth + (1 - weight) * value, weight * total + (1 - weight)
        out.append(smooth / total)
    return out


def _table(scores: dict[str, dict[str, float]]) -> list[str]:
    names = [name for name in FIGURES if any(name in figures for figures in scores.values())]
    rows = [["on the held-out text", *(FIGURES[name][0] for name in names)]]
    for model, figures in scores.items():
        rows.append([model, *(format(figures[name], FIGURES[name][1]) if name in figures else "" for name in names)])
    return _aligned(rows)


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: list[str]) -> str:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return [line(rows[0]), f"| {' | '.join(rule)} |", *map(line, rows[1:])]
