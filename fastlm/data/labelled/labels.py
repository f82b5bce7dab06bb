"""The classes of labelled data: their names and order, and whether the training and the dev file agree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fastlm.data.corpus import DataError
from fastlm.data.labelled.examples import Example, Notify, TaggedExample, TextExample


def label_names(examples: Iterable[Example]) -> tuple[str, ...]:
    """Returns the classes (or tags) of examples, sorted: as numbers if all are whole numbers, else as text."""
    names = {label for label, _, _ in _labels(examples)}
    if all(name.removeprefix("-").isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def check_labels(examples: Iterable[Example], labels: Sequence[str]) -> None:
    """Raises DataError, with file and line, for the first label (or tag) that is not one of `labels`."""
    known = set(labels)
    for label, example, word in _labels(examples):
        if label not in known:
            place = "" if word is None else f": word {word + 1} ({example.words[word]!r})"
            raise unknown_label(label, labels, example.where + place)


def check_dev_labels(train: Sequence[Example], dev: Sequence[Example], labels: Sequence[str], notify: Notify) -> None:
    """Compares the labels of the training and the dev examples.

    Raises DataError for a dev label that is not one of `labels`, and for a class of the training examples that no dev
    example has: its errors would not be seen. Rare tags are often missing from a dev file, so `notify` is told of them,
    and of scores (regression) that are all equal. labels: the names of the classes, none for a regression.
    """
    for examples in (train, dev):
        _report_equal_scores(examples, notify)
    check_labels(dev, labels)
    in_dev = {label for label, _, _ in _labels(dev)}
    absent: dict[str, str] = {}
    for label, example, _ in _labels(train):
        if label not in in_dev:
            absent.setdefault(label, example.where)
    if not absent:
        return
    if any(isinstance(example, TaggedExample) for example in train):
        notify(f"{_file(dev)}: {', '.join(sorted(absent))}: no word has this tag, which is in the training file")
        return
    label, where = next(iter(absent.items()))
    raise DataError(
        f"{where}: the label {label!r} is in no example of {_file(dev)}, which therefore cannot show how well it is "
        f"predicted; remove it from the training file, or choose a dev file with it"
    )


def _report_equal_scores(examples: Sequence[Example], notify: Notify) -> None:
    scores = [e.label for e in examples if isinstance(e, TextExample) and isinstance(e.label, float)]
    if len(scores) > 1 and len(set(scores)) == 1:
        notify(
            f"{_file(examples)}: all {len(scores)} scores are {scores[0]:g}: there is nothing to learn from them, and "
            f"a correlation with them is not defined (0 is reported)"
        )


def unknown_label(label: str, labels: Sequence[str], where: str) -> DataError:
    """Returns the error of a label that is not one of `labels`."""
    shown = ", ".join(labels) if len(labels) <= 12 else f"{', '.join(labels[:12])} and {len(labels) - 12} more"
    return DataError(f"{where}: unknown label {label!r}; the labels are {shown}")


def _labels(examples: Iterable[Example]) -> Iterator[tuple[str, Any, int | None]]:
    """Yields (label, example, None) of classified texts, and (tag, example, the word's index) of tagged sentences."""
    for example in examples:
        if isinstance(example, TaggedExample):
            yield from ((tag, example, word) for word, tag in enumerate(example.tags or ()))
        elif isinstance(example, TextExample) and isinstance(example.label, str):
            yield example.label, example, None


def _file(examples: Sequence[Example]) -> str:
    return examples[0].where.rpartition(":")[0] if examples else "the dev file"
