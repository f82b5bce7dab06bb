"""metrics.jsonl, one record per update, and the loss curve of a run in bounded memory."""

from __future__ import annotations

import io
import json
import math
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastlm.files import new_file

SHOWN = 20  # last updates, whose mean the progress bar shows


class Bin(NamedTuple):
    """Summarises neighbouring values: their minimum, mean and maximum, and the mean of their steps."""

    count: int
    step: float
    low: float
    mean: float
    high: float


class Series:
    """Keeps a series of any length in at most `max_bins` bins.

    A full bin has `width` values, initially 1. When all bins are full, pairs of neighbours are merged and the width
    doubles.
    """

    def __init__(self, max_bins: int = 2000):
        if max_bins < 2 or max_bins % 2:
            raise ValueError(f"max_bins: an even number of at least 2 expected, got {max_bins}")
        self.max_bins, self.width = max_bins, 1
        self.bins: list[Bin] = []

    def add(self, step: int, value: float) -> None:
        """Appends the value of a step."""
        new = Bin(1, step, value, value, value)
        if self.bins and self.bins[-1].count < self.width:
            self.bins[-1] = _merged(self.bins[-1], new)
            return
        if len(self.bins) == self.max_bins:
            self.bins = [_merged(*self.bins[i : i + 2]) for i in range(0, self.max_bins, 2)]
            self.width *= 2
        self.bins.append(new)


class Curve:
    """Keeps the losses of a run's updates and validations, and the validations' other metrics, for the plots.

    scores: {metric: its series}, without the loss.
    """

    def __init__(self):
        self.training, self.validation = Series(), Series()
        self.scores: dict[str, Series] = {}

    def add(self, record: dict[str, Any]) -> None:
        """Appends the "loss" and the "validation_..." of a record of metrics.jsonl, if it has them."""
        step = record["step"]
        if "loss" in record:
            self.training.add(step, record["loss"])
        for name, value in record.items():
            metric = name.removeprefix("validation_")
            if metric == "loss" != name:
                self.validation.add(step, value)
            elif metric != name and isinstance(value, float):
                self.scores.setdefault(metric, Series()).add(step, value)


class Metrics:
    """Opens metrics.jsonl to append the updates after `step`.

    Removes damaged lines, and the records of later updates, which are made again. Raises OSError.

    last: the last SHOWN records. curve: the data of `report.plot`. lost: how many of the updates 1 to `step` have no
    record. A run needs none of them: its checkpoint has its totals.
    """

    def __init__(self, file: Path, step: int):
        self.last: deque[dict[str, Any]] = deque(maxlen=SHOWN)
        self.curve = Curve()
        self.lost = step
        with new_file(file) as temporary, open(temporary, "wb") as kept:
            for record, line in _valid_records(file, step):
                kept.write(line)
                self._keep(record)
                self.lost -= 1
        self._descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)

    def append(self, records: list[dict[str, Any]]) -> None:
        """Writes the records of the next updates. Raises OSError."""
        # Unbuffered: a process that is killed after this loses no line.
        content = b"".join(json.dumps(record).encode() + b"\n" for record in records)
        while content:
            content = content[os.write(self._descriptor, content) :]
        for record in records:
            self._keep(record)

    def sync(self) -> None:
        """Waits until the disk holds the records."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Closes the file; `last` and `curve` can still be read."""
        os.close(self._descriptor)

    def _keep(self, record: dict[str, Any]) -> None:
        self.last.append(record)
        self.curve.add(record)


def _valid_records(file: Path, last: int) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yields the records of updates 1 to `last`, each with its line. Skips unfinished, foreign and repeated lines."""
    step = 0
    with open(file, "rb") if file.exists() else io.BytesIO() as lines:
        for line in lines:
            try:
                record = json.loads(line)
                valid = step < record["step"] <= last and line.endswith(b"\n") and _can_be_shown(record)
            except (ValueError, TypeError, KeyError, OverflowError):
                continue
            if valid:
                step = record["step"]
                yield record, line


def _can_be_shown(record: dict[str, Any]) -> bool:
    """Returns whether the curve and the progress bar can show a record. Raises TypeError for what is no number."""
    shown = (record["loss"], record["tokens_per_second"], record.get("validation_loss", 0.0))
    return type(record["step"]) is int and all(map(math.isfinite, shown))


def _merged(first: Bin, second: Bin) -> Bin:
    """Returns one bin with the values of both."""
    count = first.count + second.count
    weight = second.count / count
    return Bin(
        count,
        first.step + (second.step - first.step) * weight,
        min(first.low, second.low),
        first.mean + (second.mean - first.mean) * weight,
        max(first.high, second.high),
    )
