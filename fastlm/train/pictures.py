"""Pictures: the scores of a run's validations, the confusion matrix of its labels, and the scores of a search."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # without pyplot: no global state, no display

from fastlm.files import write_bytes
from fastlm.train.metrics import Curve
from fastlm.train.trials import Summary

READABLE = 12  # labels up to which the cells of a confusion matrix have their counts


def plot_scores(curve: Curve, file: Path, *, scores: Mapping[str, str], title: str) -> None:
    """Draws scores of the validations over the updates, as a PNG. Without a validation it writes nothing.

    scores: {metric: its title}. Raises OSError.
    """
    drawn = {scores[name]: series for name, series in curve.scores.items() if name in scores}
    if not drawn:
        return
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for name, series in drawn.items():
        axes.plot([b.step for b in series.bins], [b.mean for b in series.bins], "o-", label=name)
    axes.set(title=title, xlabel="update", ylabel="score on the validation data")
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    _write(figure, file)


def plot_confusion(confusion: Mapping[str, Any], file: Path, *, title: str) -> None:
    """Draws a confusion matrix as a PNG, a row per true label, coloured by the fraction of its row.

    confusion: {"labels": C names, "counts": C rows of C counts}. Raises OSError.
    """
    labels, counts = confusion["labels"], confusion["counts"]
    fractions = [[count / max(1, sum(row)) for count in row] for row in counts]
    side = min(4.0 + 0.35 * len(labels), 16.0)
    figure = Figure(figsize=(side + 0.8, side))
    axes = figure.subplots()
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels, rotation=45, ha="right")
    axes.set_yticks(ticks, labels)
    axes.set(title=title, xlabel="predicted", ylabel="true")
    if len(labels) <= READABLE:
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                color = "white" if fractions[i][j] > 0.6 else "black"
                axes.text(j, i, f"{count:,}", ha="center", va="center", color=color)
    figure.colorbar(image, ax=axes, label="fraction of the true label", fraction=0.046)
    figure.tight_layout()
    _write(figure, file)


def _write(figure: Figure, file: Path) -> None:
    image = io.BytesIO()
    figure.savefig(image, dpi=120, format="png")
    write_bytes(file, image.getvalue())


def plot_trials(summaries: Sequence[Summary], file: Path, *, metric: str, title: str) -> None:
    """Draws the scores of a search as a PNG: per setting a point per seed, mean and deviation. Raises OSError."""
    figure = Figure(figsize=(max(5.0, 1.5 + 0.9 * len(summaries)), 4.5))
    axes = figure.subplots()
    places = range(len(summaries))
    seeds = [(x, score) for x, summary in zip(places, summaries, strict=True) for score in summary.scores]
    axes.plot(*zip(*seeds, strict=True), "o", color="C0", alpha=0.5, label="a seed")
    means, spreads = [summary.mean for summary in summaries], [summary.deviation or 0.0 for summary in summaries]
    beside = [x + 0.1 for x in places]
    axes.errorbar(beside, means, yerr=spreads, fmt="s", color="C1", capsize=4, label="mean and deviation")
    names = ["\n".join(f"{n} {v}" for n, v in summary.options.items()) for summary in summaries]
    axes.set_xticks(places, names)
    axes.set(title=title, ylabel=metric, xlim=(-0.5, len(summaries) - 0.5))
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    figure.tight_layout()
    _write(figure, file)
