"""Labelled examples of fine-tuning, one type per kind of task. Imports neither torch nor numpy.

`id` is the file's own, or else the number of the row, from "0". `where` is "FILE:LINE", for messages. An example
without a label (of a test file) has None in the place of its label.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Literal, NamedTuple

Kind = Literal["classification", "regression", "choice", "span", "tagging"]
KINDS: tuple[Kind, ...] = ("classification", "regression", "choice", "span", "tagging")
Notify = Callable[[str], None]


class TextExample(NamedTuple):
    """Holds a text, or a pair of texts. The label is a class's name (classification) or a number (regression)."""

    id: str
    text: str
    pair: str | None
    label: str | float | None
    where: str


class ChoiceExample(NamedTuple):
    """Holds a context, a question about it ("" without one), and its possible continuations or answers.

    label: the index of the right choice. Where a format completes a sentence, its choices hold the whole completion.
    """

    id: str
    context: str
    question: str
    choices: tuple[str, ...]
    label: int | None
    where: str


class Answer(NamedTuple):
    """Holds an answer: its text, and the offset of its first character in the context."""

    text: str
    start: int


class SpanExample(NamedTuple):
    """Holds a question, and a context that its answers are parts of.

    answers: all right answers. They are empty if the context has none, which is then `impossible`, and in a test file.
    """

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    impossible: bool
    where: str


class TaggedExample(NamedTuple):
    """Holds the words of a sentence and a tag per word. document: the number of the sentence's document, from 0."""

    id: str
    words: tuple[str, ...]
    tags: tuple[str, ...] | None
    document: int
    where: str


Example = TextExample | ChoiceExample | SpanExample | TaggedExample


def to_stderr(message: str) -> None:
    """Prints a message to stderr. Readers that were given no other `notify` report skipped rows by it."""
    print(message, file=sys.stderr)
