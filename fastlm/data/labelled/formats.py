"""The formats of labelled data by name: how to read a file, its labels, its scores, and what a benchmark accepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from fastlm.data.labelled.examples import Example, Kind, Notify, to_stderr


class Columns(NamedTuple):
    """Names the columns of a table, or (conll) numbers them, from "0"; "-1" is the last one."""

    text: str = "text"
    pair: str | None = None
    label: str | None = "label"
    id: str | None = None


class Read(Protocol):
    """Reads all examples of a file (RACE: of a folder).

    labelled=False is for test and prediction files: a label may then be missing, and is read if it is there.
    `notify` is told how many rows were skipped, and why. Raises DataError with the file and the line.
    """

    def __call__(self, path: Path, notify: Notify = to_stderr, *, labelled: bool = True) -> list[Example]: ...


class Format(NamedTuple):
    """Describes a format.

    labels: the classes in their fixed order, or None: those of the training file (`labels.label_names`).
    scores: names in `evaluate.scores.SCORES`; the first one selects the best model.
    submission: `submission(folder, ids, predictions)` writes the files that the benchmark accepts and returns their
    paths, or None. Predictions are labels' names, numbers (regression), texts (squad1), or pairs of the best answer
    that is not empty and the null odds (squad2).
    group: returns the part of the data that an example belongs to, whose scores are reported, too (RACE), or None.
    """

    name: str
    kind: Kind
    read: Read
    labels: tuple[str, ...] | None
    scores: tuple[str, ...]
    submission: Callable[[Path, Sequence[str], Sequence], list[Path]] | None = None
    group: Callable[[Example], str] | None = None


def find_format(name: str, *, columns: Columns | None = None, kind: Kind | None = None) -> Format:
    """Returns the format called `name`.

    The generic ones ("tsv", "csv", "jsonl", "parquet") take `columns` and a `kind` ("classification" by default).
    Raises ValueError for an unknown name, and for options that the format does not have.
    """
    raise NotImplementedError
