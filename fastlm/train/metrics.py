"""metrics.jsonl, one record per update, and the loss curve of a run in bounded memory."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastlm.run_folder import RunError

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
    """Keeps the losses of a run's updates and validations for the plot."""

    def __init__(self):
        self.training, self.validation = Series(), Series()

    def add(self, record: dict[str, Any]) -> None:
        """Appends the "loss" and "validation_loss" of a record of metrics.jsonl, if it has them."""
        for series, name in ((self.training, "loss"), (self.validation, "validation_loss")):
            if name in record:
                series.add(record["step"], record[name])


class Metrics:
    """Opens metrics.jsonl to append the updates after `step`; cuts off later records, whose updates are made again.

    last: the last SHOWN records. curve: the data of `report.plot`. Raises RunError if one of the records 1 to `step`
    is missing.
    """

    def __init__(self, file: Path, step: int):
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        self.last: deque[dict[str, Any]] = deque(maxlen=SHOWN)
        self.curve = Curve()
        good = kept = 0  # records, bytes
        for record, size in _valid_records(file):
            if good == step:
                break
            self._keep(record)
            good, kept = good + 1, kept + size
        if good != step:
            self.close()
            raise RunError(f"run: {file} has {good} good records where the checkpoint is of step {step}")
        os.ftruncate(self._descriptor, kept)
        os.lseek(self._descriptor, kept, os.SEEK_SET)

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


def _valid_records(file: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yields the records of updates 1, 2, ... and the size of each in bytes, up to an unfinished or foreign line."""
    with open(file, "rb") as lines:
        for step, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                valid = record["step"] == step and line.endswith(b"\n")
            except (ValueError, TypeError, KeyError):
                valid = False
            if not valid:
                return
            yield record, len(line)


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
