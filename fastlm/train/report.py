"""A run's report and loss curve, for people to read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # without pyplot: no global state, no display

from fastlm.files import write_bytes
from fastlm.train.metrics import Curve

# The name of a figure in the report, and how its value is written.
FIGURES = {
    "loss": ("loss", ".3f"),
    "perplexity": ("perplexity", ".1f"),
    "bits_per_byte": ("bits per byte", ".3f"),
    "mlm_loss": ("masked loss", ".3f"),
    "nsp_loss": ("next-sentence loss", ".3f"),
    "masked_accuracy": ("masked accuracy", ".1%"),
    "nsp_accuracy": ("next-sentence accuracy", ".1%"),
}


def markdown(result: dict[str, Any]) -> str:
    """Returns the report as Markdown that also reads well in a terminal.

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
    """Returns what a finished run's report.json holds. Raises ValueError, naming the file, if it is damaged."""
    try:
        result = json.loads(file.read_text())
        markdown(result)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file}: damaged, not the report of a run ({type(error).__name__}: {error}); "
            "remove it, and the command that trained the run writes it again"
        ) from error
    return result


def plot(curve: Curve, file: Path, *, title: str) -> None:
    """Draws the loss curve as a PNG: each update (in a long run the range of neighbours), a smoothed line, validations.

    A million updates take as long as a few thousand. Raises OSError.
    """
    training, validation = curve.training.bins, curve.validation.bins
    steps = [b.step for b in training]
    figure = Figure(figsize=(7, 4))  # no layout engine: it would draw twice
    axes = figure.subplots()
    axes.plot(
        [step for step in steps for _ in range(2)],
        [loss for b in training for loss in (b.low, b.high)],
        color="C0",
        alpha=0.25,
        linewidth=0.8,
        label="training, each update",
    )
    axes.plot(steps, _smoothed([b.mean for b in training]), color="C0", label="training, smoothed")
    if validation:
        axes.plot([b.step for b in validation], [b.mean for b in validation], "o-", color="C1", label="validation")
    axes.set(title=title, xlabel="update", ylabel="loss (nats)")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    image = io.BytesIO()
    figure.savefig(image, dpi=120, format="png")
    write_bytes(file, image.getvalue())


def _smoothed(values: list[float], weight: float = 0.97) -> list[float]:
    """Returns the exponential moving average, without the bias of its start."""
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
