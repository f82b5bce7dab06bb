"""From labelled examples to the sequences of a model, in flat arrays: texts and choices here, spans and tags beside."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from fastlm.data.corpus import DataError
from fastlm.data.inputs import Encoded, Template
from fastlm.data.labelled.description import Description
from fastlm.data.labelled.examples import ChoiceExample, Example, TextExample
from fastlm.data.labelled.labels import unknown_label
from fastlm.data.tokenizer import Tokenizer

IGNORED = -100  # the target of what is not predicted
CHUNK = 4096  # examples tokenised at a time


@dataclass(frozen=True)
class Encodings:
    """Holds the sequences of items. An item is an example, or a window of one (spans).

    tokens: (T,) int32, all sequences one after the other. starts: (sequences + 1,) int64, where each begins, and T.
    second, rows: (sequences,) int32, see `inputs.Encoded`. per_item: sequences per item: 2 in both orders, C choices.
    example: (items,) int32, the example of each item, ascending.
    targets: by name: "labels" or "choice_labels" (items,) int32, "scores" (items,) float32, "span_starts" and
        "span_ends" (items,) int32, "tag_targets" (T,) int32. Empty without labels.
    places: what turns outputs into predictions, see encode_spans.py and encode_tags.py.
    cut: (items,) int32, tokens of each item that did not fit.
    """

    tokens: np.ndarray
    starts: np.ndarray
    second: np.ndarray
    rows: np.ndarray
    per_item: int
    example: np.ndarray
    cut: np.ndarray
    targets: dict[str, np.ndarray] = field(default_factory=dict)
    places: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        """Returns the number of items."""
        return len(self.example)

    @property
    def lengths(self) -> np.ndarray:
        """Returns the length of each sequence, (sequences,) int64."""
        return np.diff(self.starts)

    @property
    def item_lengths(self) -> np.ndarray:
        """Returns the length of the longest sequence of each item, (items,) int64."""
        return self.lengths.reshape(-1, self.per_item).max(1)

    @property
    def predicted(self) -> np.ndarray:
        """Returns how many predictions of each item have a target: tokens with a tag, else 1 or 0. (items,) int64."""
        tags, starts = self.targets.get("tag_targets"), self.targets.get("span_starts")
        if tags is not None:
            return np.add.reduceat(tags != IGNORED, self.starts[:-1], dtype=np.int64)
        return np.ones(len(self), np.int64) if starts is None else (starts != IGNORED).astype(np.int64)

    def cut_warning(self, source: str, max_length: int) -> str | None:
        """Returns a sentence on the inputs that were cut, or None if all fit."""
        inputs, lost = int((self.cut > 0).sum()), int(self.cut.sum())
        if not inputs:
            return None
        were = "was" if inputs == 1 else "were"
        return (
            f"{source}: {inputs:,} of {len(self):,} inputs {were} longer than max_length {max_length} and {were} cut, "
            f"by {lost / inputs:.0f} tokens on average"
        )

    def save(self, file: Path) -> None:
        """Writes an .npz file, without `places`."""
        named = {f"targets.{name}": values for name, values in self.targets.items()}
        plain = ("tokens", "starts", "second", "rows", "per_item", "example", "cut")
        np.savez(file, **{name: getattr(self, name) for name in plain}, **named)

    @classmethod
    def load(cls, file: Path) -> Encodings:
        """Reads what `save` wrote. Raises DataError for a file that is missing or damaged."""
        try:
            with np.load(file) as stored:  # allow_pickle is off
                arrays = {name: stored[name] for name in stored.files}
            targets = {n.partition(".")[2]: arrays.pop(n) for n in list(arrays) if n.startswith("targets.")}
            return cls(**arrays | {"per_item": int(arrays["per_item"])}, targets=targets)
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise DataError(f"{file}: not the encoded examples of a run ({error}); prepare them again") from None


class Builder:
    """Collects the sequences of items, and makes their Encodings."""

    def __init__(self, per_item: int = 1):
        self.per_item = per_item
        self._arrays = {name: array("i") for name in ("tokens", "second", "rows", "example", "cut")}
        self._starts = array("q", [0])
        self._targets: dict[str, array] = {}

    def add(self, encoded: Sequence[Encoded], example: int, cut: int, **targets: Any) -> None:
        """Adds an item: its sequences, the number of its example, the tokens it lost, its targets by name."""
        for sequence in encoded:
            self._arrays["tokens"].extend(sequence.tokens)
            self._arrays["second"].append(sequence.second)
            self._arrays["rows"].append(sequence.row)
            self._starts.append(len(self._arrays["tokens"]))
        self._arrays["example"].append(example)
        self._arrays["cut"].append(cut)
        for name, value in targets.items():
            values = self._targets.setdefault(name, array("f" if name == "scores" else "i"))
            values.extend(value if isinstance(value, list) else (value,))

    def encodings(self, **places: np.ndarray) -> Encodings:
        """Returns all that was added."""
        arrays = {name: np.array(values) for name, values in self._arrays.items()}
        targets = {name: np.array(values) for name, values in self._targets.items()}
        return Encodings(
            starts=np.array(self._starts), per_item=self.per_item, targets=targets, places=places, **arrays
        )


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, task: Description, *, targets: bool, places: bool = False
) -> Encodings:
    """Encodes examples, at least one, as `task` says.

    targets: whether to add the targets of training; all examples then need labels. places: whether to add what turns
    outputs into predictions. Raises DataError, with the file and the line, for a label that the task does not have and
    for examples with different numbers of choices. "[MASK]" and the like are ordinary characters in a text.
    """
    from fastlm.data.labelled.encode_spans import encode_spans
    from fastlm.data.labelled.encode_tags import encode_tags

    template = Template.of(tokenizer, task.max_length)
    if task.kind == "span":
        return encode_spans(examples, tokenizer, template, task, targets=targets, places=places)
    if task.kind == "tagging":
        return encode_tags(examples, tokenizer, template, task, targets=targets, places=places)
    encode_kind = _encode_choices if task.kind == "choice" else _encode_texts
    return encode_kind(examples, tokenizer, template, task, targets=targets)


def _encode_texts(
    examples: Sequence[TextExample], tokenizer: Tokenizer, template: Template, task: Description, *, targets: bool
) -> Encodings:
    builder = Builder(per_item=2 if task.both_orders else 1)
    for first, chunk in chunks(examples):
        texts = tokenizer.encode_corpus([e.text for e in chunk])
        pairs = iter(tokenizer.encode_corpus([e.pair for e in chunk if e.pair is not None]))
        for number, (example, a) in enumerate(zip(chunk, texts, strict=True), start=first):
            b = None if example.pair is None else next(pairs)
            if task.pairs is not None and task.pairs == (b is None):
                expected, got = ("a pair of texts", "one text") if task.pairs else ("one text", "a pair")
                raise DataError(f"{example.where}: {expected} expected, as in the training file, got {got}")
            orders = [template.text(a, b)] + ([template.text(b, a)] if task.both_orders else [])
            builder.add(orders, number, orders[0].cut, **(_text_target(example, task) if targets else {}))
    return builder.encodings()


def _text_target(example: TextExample, task: Description) -> dict[str, Any]:
    if task.kind == "regression":
        return {"scores": float(example.label)}
    return {"labels": label_index(example.label, task.labels, example.where)}


def _encode_choices(
    examples: Sequence[ChoiceExample], tokenizer: Tokenizer, template: Template, task: Description, *, targets: bool
) -> Encodings:
    count = len(examples[0].choices)
    builder = Builder(per_item=count)
    for first, chunk in chunks(examples):
        for example in chunk:
            if len(example.choices) != count:
                raise DataError(
                    f"{example.where}: {count} choices expected, as in {examples[0].where}, got {len(example.choices)}"
                )
        contexts = tokenizer.encode_corpus([e.context for e in chunk])
        questions = tokenizer.encode_corpus([e.question for e in chunk])
        options = iter(tokenizer.encode_corpus([choice for e in chunk for choice in e.choices]))
        for number, (example, context, question) in enumerate(zip(chunk, contexts, questions, strict=True), first):
            encoded = [template.choice(context, question, next(options)) for _ in range(count)]
            target = {"choice_labels": example.label} if targets else {}
            builder.add(encoded, number, max(e.cut for e in encoded), **target)
    return builder.encodings()


def chunks(examples: Sequence[Example]) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yields the examples in slices of CHUNK, each with the number of its first one."""
    for first in range(0, len(examples), CHUNK):
        yield first, examples[first : first + CHUNK]


def label_index(label: str, labels: Sequence[str], where: str) -> int:
    """Returns the index of a label. Raises DataError for an unknown one."""
    try:
        return labels.index(label)
    except ValueError:
        raise unknown_label(label, labels, where) from None
