"""Tagged sentences in columns, as in CoNLL-2000 and CoNLL-2003: a word per line, a blank line after each sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastlm.data.corpus import DataError
from fastlm.data.labelled.examples import Notify, TaggedExample
from fastlm.data.labelled.lines import read_lines

_DOCUMENT = "-DOCSTART-"


class _Line(NamedTuple):
    number: int
    cells: list[str]


def read_conll(path: Path, notify: Notify, labelled: bool, *, word: int = 0, tag: int = -1) -> list[TaggedExample]:
    """Reads sentences. word, tag: the columns' numbers, from 0, or from the end if negative.

    Tabs separate the columns of a line that has one, otherwise runs of spaces. A -DOCSTART- line begins a document; in
    a file without one, each sentence is a document of its own. Tags in IOB1, where B- is only between two entities of a
    type, are turned to BIO, and `notify` is told.

    Raises DataError, with file and line, for a line whose number of columns is not that of the file's first one, and
    for a line without a word or a tag.
    """
    sentences, has_documents = _sentences(path)
    if not sentences:
        raise DataError(f"{path}: a word and its tag per line expected, got an empty file")
    width = len(sentences[0][1][0].cells)
    has_tags = _column(tag, width) not in (None, _column(word, width))
    first = f"{path}:{sentences[0][1][0].number}"
    if _column(word, width) is None or (labelled and not has_tags):
        raise DataError(f"{first}: the columns {word} (word) and {tag} (tag) expected, from 0, got {width} columns")
    examples, changed, count = [], 0, 0
    for number, (document, lines) in enumerate(sentences):
        for line in lines:
            if len(line.cells) != width:
                raise DataError(f"{path}:{line.number}: {width} columns expected, as before, got {len(line.cells)}")
            if not line.cells[word] or (has_tags and not line.cells[tag]):
                raise DataError(f"{path}:{line.number}: a word and its tag expected, got {line.cells}")
        read = tuple(line.cells[tag] for line in lines) if has_tags else None
        tags = None if read is None else to_bio(read)
        changed += sum(a != b for a, b in zip(read or (), tags or (), strict=True))
        count += len(tags or ())
        words = tuple(line.cells[word] for line in lines)
        where = f"{path}:{lines[0].number}"
        examples.append(TaggedExample(str(number), words, tags, document if has_documents else number, where))
    if changed:
        notify(f"{path}: {changed} of {count} tags turned from IOB1 to BIO: I- to B- where an entity begins")
    return examples


def to_bio(tags: Sequence[str]) -> tuple[str, ...]:
    """Returns the tags of a sentence with B- at the beginning of each entity, where IOB1 may have I-.

    Tags in BIO or IOBES, and tags without a prefix, stay as they are.
    """
    bio, open_type = [], None  # the type of the entity that the next word may continue
    for tag in tags:
        prefix, dash, kind = tag.partition("-")
        if prefix == "I" and dash and kind != open_type:
            tag = f"B-{kind}"
        open_type = kind if dash and prefix in ("B", "I") else None
        bio.append(tag)
    return tuple(bio)


def _sentences(path: Path) -> tuple[list[tuple[int, list[_Line]]], bool]:
    """Returns (document, lines) of each sentence, and whether the file marks documents."""
    sentences: list[tuple[int, list[_Line]]] = []
    document, lines, marked = 0, [], False
    for number, text in read_lines(path):
        cells = _cells(text)
        if cells and cells[0] != _DOCUMENT:
            lines.append(_Line(number, cells))
            continue
        if lines:
            sentences.append((document, lines))
            lines = []
        if cells:
            document += marked or bool(sentences)  # sentences before the first mark are a document, too
            marked = True
    if lines:
        sentences.append((document, lines))
    return sentences, marked


def _cells(text: str) -> list[str]:
    """Returns the columns of a line, none for a blank line. Only spaces and tabs are blank: a word may be U+00A0."""
    if not text.strip(" \t"):
        return []
    return [cell.strip(" ") for cell in text.split("\t")] if "\t" in text else re.split(" +", text.strip(" "))


def _column(number: int, width: int) -> int | None:
    """Returns a column's number from the start, or None if there is no such column."""
    return number % width if -width <= number < width else None
