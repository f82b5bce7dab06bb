"""The report of a run, as Markdown, and its loss curve, as a picture."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # without pyplot: no global state, no display

from fastlm.files import write_bytes
from fastlm.train.metrics import Curve

PLAIN = ".3f"  # number format of a metric that the task has no title for


def markdown(result: dict[str, Any]) -> str:
    """Returns the report as Markdown that also reads well in a terminal.

    result["scores"]: {model: {metric: value}} on the held-out text. result["figures"]: {metric: (title, format)}, in
    the order of the table. Optional: result["examples"], lines of text; result["best"], see `Selection.to_json`.
    """
    head = (
        f"# {result['model']}: {result['parameters']:,} parameters, {result['steps']:,} updates, "
        f"{result['tokens']:,} tokens, {result['training_seconds'] / 60:.1f} minutes"
    )
    lines = [head, "", *_table(result["scores"], result.get("figures", {}))]
    if "best" in result:
        best = result["best"]
        title, style = result.get("figures", {}).get(best["metric"], (best["metric"], PLAIN))
        lines += [
            "",
            f"The model is that of update {best['step']:,}, the first with the best {title} in validations: "
            f"{format(best['value'], style)}.",
        ]
    if "examples" in result:
        examples = [f"- {example}" for example in result["examples"]]
        lines += ["", f"## {result['examples_title']}", "", *examples]
    return "\n".join(lines) + "\n"


def read(file: Path) -> dict[str, Any]:
    """Returns the content of report.json of a finished run. Raises ValueError, naming the file, if it is damaged."""
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
    """Draws the loss curve as a PNG: each update (in a long run, ranges of updates), a smoothed line, validations.

    The time does not grow with the run, since a Curve has a bounded number of bins. Raises OSError.
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
    """Returns the exponential moving average, corrected for its start at 0."""
    smooth, total, out = 0.0, 0.0, []
    for value in values:
        smooth, total = weight * smooth + (1 - weight) * value, weight * total + (1 - weight)
        out.append(smooth / total)
    return out


def _table(scores: dict[str, dict[str, float]], known: dict[str, Sequence[str]]) -> list[str]:
    """Returns one row per model and one column per metric: the known metrics first, in their order."""
    found = dict.fromkeys(name for metrics in scores.values() for name in metrics)
    names = {name: known.get(name, (name, PLAIN)) for name in [*(n for n in known if n in found), *found]}
    rows = [["on the held-out text", *(title for title, _ in names.values())]]
    for model, metrics in scores.items():
        cells = (format(metrics[name], style) if name in metrics else "" for name, (_, style) in names.items())
        rows.append([model, *cells])
    return aligned(rows)


def aligned(rows: list[list[str]]) -> list[str]:
    """Returns a Markdown table with aligned columns; the first row is its header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: list[str]) -> str:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return [line(rows[0]), f"| {' | '.join(rule)} |", *map(line, rows[1:])]
