"""Labelled examples in a run folder, one JSON array per line: a run evaluates on them though its files may be gone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastlm.data.corpus import DataError
from fastlm.data.labelled.examples import Answer, ChoiceExample, Example, Kind, SpanExample, TaggedExample, TextExample


def write_examples(file: Path, examples: Iterable[Example]) -> None:
    """Writes the fields of each example, in their order."""
    with open(file, "w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(example, ensure_ascii=False) + "\n" for example in examples)


def read_examples(file: Path, kind: Kind) -> list[Example]:
    """Reads what `write_examples` wrote. Raises DataError for a file that is missing or damaged."""
    try:
        with open(file, encoding="utf-8") as lines:
            return [_example(kind, json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file}: not the examples of a run ({error}); prepare them again") from None


def _example(kind: Kind, values: list[Any]) -> Example:
    if kind == "choice":
        example = ChoiceExample(*values)
        return example._replace(choices=tuple(example.choices))
    if kind == "span":
        example = SpanExample(*values)
        return example._replace(answers=tuple(Answer(*answer) for answer in example.answers))
    if kind == "tagging":
        example = TaggedExample(*values)
        return example._replace(words=tuple(example.words), tags=tuple(example.tags))
    return TextExample(*values)
