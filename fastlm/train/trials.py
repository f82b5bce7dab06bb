"""A grid of runs: its trials, and the mean and deviation of their scores over seeds. Imports no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastlm.train.report import aligned

SEED = "seed"


class Trial(NamedTuple):
    """Holds the options that a trial sets, and its name, which is that of its folder."""

    name: str
    options: dict[str, Any]


class Summary(NamedTuple):
    """Holds the scores of the trials that differ in the seed alone. deviation: of the sample; None for one seed."""

    options: dict[str, Any]  # without the seed
    scores: list[float]
    mean: float
    deviation: float | None


def trials_of(grid: Mapping[str, Sequence[Any]]) -> list[Trial]:
    """Returns a trial per combination of the values; the last option changes fastest."""
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return [Trial(_name(options), options) for options in combinations]


def _name(options: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in options.items()).replace("/", "_")


def summarise(results: Sequence[tuple[dict[str, Any], float]]) -> list[Summary]:
    """Joins the results that differ in the seed alone. results: (a trial's options, its score) pairs."""
    joined: dict[tuple, list[float]] = {}
    for options, score in results:
        joined.setdefault(tuple((n, v) for n, v in options.items() if n != SEED), []).append(score)
    return [Summary(dict(options), scores, mean(scores), deviation(scores)) for options, scores in joined.items()]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float | None:
    """Returns the standard deviation of a sample (with n - 1); None for fewer than two values."""
    if len(values) < 2:
        return None
    center = mean(values)
    return math.sqrt(math.fsum((value - center) ** 2 for value in values) / (len(values) - 1))


def best_of(summaries: Sequence[Summary], metric: str) -> Summary:
    """Returns the summary with the best mean: the lowest loss, the highest of other metrics. NaN is the worst."""
    sign = 1 if metric == "loss" else -1
    return min(summaries, key=lambda s: math.inf if math.isnan(s.mean) else sign * s.mean)


def table(summaries: Sequence[Summary], metric: str, title: tuple[str, str]) -> list[str]:
    """Returns a Markdown table, a row per setting, the best one marked. title: of the metric, and its number format."""
    name, style = title
    head = [*summaries[0].options, "seeds", f"{name}, mean", "deviation", "lowest", "highest"]
    best = best_of(summaries, metric)
    several = len(summaries) > 1
    rows = [[*head, ""] if several else head]
    for summary in summaries:
        spread = "-" if summary.deviation is None else format(summary.deviation, style)
        numbers = [format(value, style) for value in (min(summary.scores), max(summary.scores))]
        cells = [str(value) for value in summary.options.values()]
        mark = ["best" if summary is best else ""] if several else []
        rows.append([*cells, str(len(summary.scores)), format(summary.mean, style), spread, *numbers, *mark])
    return aligned(rows)
