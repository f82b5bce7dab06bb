"""metrics.jsonl, with a record per update, and the loss curve kept from it in memory that does not grow with a run."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastlm.run_folder import RunError

SHOWN = 20  # updates that the progress bar averages over


class Bin(NamedTuple):
    """Holds the smallest, mean and largest of neighbouring values, and the mean of their steps."""

    count: int
    step: float
    low: float
    mean: float
    high: float


class Series:
    """Keeps a series of any length in at most `most` bins.

    Each bin has `width` values, at first 1. When all `most` bins are full, neighbours are merged and the width doubles.
    """

    def __init__(self, most: int = 2000):
        if most < 2 or most % 2:
            raise ValueError(f"most: an even number of at least 2 expected, got {most}")
        self.most, self.width = most, 1
        self.bins: list[Bin] = []

    def add(self, step: int, value: float) -> None:
        """Appends the value of a step."""
        new = Bin(1, step, value, value, value)
        if self.bins and self.bins[-1].count < self.width:
            self.bins[-1] = _merged(self.bins[-1], new)
            return
        if len(self.bins) == self.most:
            self.bins = [_merged(*self.bins[i : i + 2]) for i in range(0, self.most, 2)]
            self.width *= 2
        self.bins.append(new)


class Curve:
    """Keeps the losses of a run's updates and validations for the plot."""

    def __init__(self):
        self.training, self.validation = Series(), Series()

    def add(self, record: dict[str, Any]) -> None:
        """Appends what a record of metrics.jsonl has of "loss" and "validation_loss"."""
        for series, name in ((self.training, "loss"), (self.validation, "validation_loss")):
            if name in record:
                series.add(record["step"], record[name])


class Metrics:
    """Opens metrics.jsonl to append the updates after `step`; cuts off records of later ones, which come again.

    last: the last SHOWN records. curve: what `report.plot` draws. Raises RunError if one of the records 1 to `step` is
    missing.
    """

    def __init__(self, file: Path, step: int):
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        self.last: deque[dict[str, Any]] = deque(maxlen=SHOWN)
        self.curve = Curve()
        good = kept = 0
        for record, size in _good_records(file):
            if good == step:
                break
            self._note(record)
            good, kept = good + 1, kept + size
        if good != step:
            self.close()
            raise RunError(f"run: {file} has {good} good records where the checkpoint is of step {step}")
        os.ftruncate(self._descriptor, kept)
        os.lseek(self._descriptor, kept, os.SEEK_SET)

    def append(self, records: list[dict[str, Any]]) -> None:
        """Writes the records of the next updates. Raises OSError."""
        # Unbuffered: a line is in the file when this returns, also if the process is killed then.
        content = b"".join(json.dumps(record).encode() + b"\n" for record in records)
        while content:
            content = content[os.write(self._descriptor, content) :]
        for record in records:
            self._note(record)

    def sync(self) -> None:
        """Waits until the disk holds the records."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Closes the file; `last` and `curve` stay."""
        os.close(self._descriptor)

    def _note(self, record: dict[str, Any]) -> None:
        self.last.append(record)
        self.curve.add(record)


def _good_records(file: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yields the records of updates 1, 2, ... and the bytes of each, up to a line that is unfinished or foreign."""
    with open(file, "rb") as lines:
        for step, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                good = record["step"] == step and line.endswith(b"\n")
            except (ValueError, TypeError, KeyError):
                good = False
            if not good:
                return
            yield record, len(line)


def _merged(first: Bin, second: Bin) -> Bin:
    count = first.count + second.count
    share = second.count / count
    return Bin(
        count,
        first.step + (second.step - first.step) * share,
        min(first.low, second.low),
        first.mean + (second.mean - first.mean) * share,
        max(first.high, second.high),
    )
