"""Corpora: documents of paragraphs from plain text and JSON lines.

A document is a str whose paragraphs are separated by one newline; inside a paragraph every run of white space is one
space, so hard-wrapped text is unwrapped. In a .txt file

- document="blank-line": a blank line ends a document, which so is one paragraph (the format of BERT's original code);
- document="file": the file is one document, and a blank line ends a paragraph (a book or an article a file).

In a .jsonl file each line is an object whose "text" is one document, in which a blank line ends a paragraph. Both kinds
may be compressed: .txt.xz, .txt.gz, .jsonl.xz, .jsonl.gz. Text is UTF-8.
"""

from __future__ import annotations

import gzip
import importlib.resources
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

ENDINGS = tuple(kind + packing for kind in (".txt", ".jsonl") for packing in ("", ".xz", ".gz"))
DOCUMENT = ("blank-line", "file")


class DataError(ValueError):
    """Text, a tokenizer or shards that cannot be used; the sentence says where, why and what would be right."""


def novels() -> Path:
    """The bundled corpus: Jane Austen's six novels (public domain), 4 MB, each of their 269 chapters a document.

    The text is that of the R package janeaustenr, without an editor's note.
    """
    return Path(str(importlib.resources.files("fastlm.data") / "novels.jsonl.xz"))


class Documents:
    """The documents of some files, read anew by each iteration; holds one document in memory at a time."""

    def __init__(self, paths: Iterable[str | Path], document: str = "blank-line"):
        if isinstance(paths, (str, Path)):
            paths = [paths]
        self.paths = [Path(path) for path in paths]
        self.document = document
        if document not in DOCUMENT:
            raise ValueError(f"document: one of {', '.join(DOCUMENT)} expected, got {document!r}")
        if not self.paths:
            raise DataError("paths: at least one text file expected, got none")
        for path in self.paths:
            if not path.name.endswith(ENDINGS):
                raise DataError(f"{path}: a file whose name ends in {', '.join(ENDINGS)} expected")
            if not path.is_file():
                raise DataError(f"{path}: {'a file expected, got a folder' if path.is_dir() else 'no such file'}")

    def __iter__(self) -> Iterator[str]:
        empty = True
        for path in self.paths:
            for text in self._texts(path):
                if text:
                    empty = False
                    yield text
        if empty:
            raise DataError(f"{', '.join(map(str, self.paths))}: no text in it")

    def _texts(self, path: Path) -> Iterator[str]:
        if ".jsonl" in (path.suffix, Path(path.stem).suffix):
            return _json_documents(path)
        paragraphs = _paragraphs(_lines(path))
        return iter(["\n".join(paragraphs)]) if self.document == "file" else paragraphs


def read_documents(paths: str | Path | Iterable[str | Path], document: str = "blank-line") -> Documents:
    """The documents of text files, in order, as an iterable that can be read again and again.

    Raises DataError while reading where a file is not UTF-8 (with the byte's offset), a line is not a JSON object with
    a "text" (with its number), a compressed file is damaged, or there is no text at all.
    """
    return Documents(paths, document)


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Blocks of lines between blank lines, each unwrapped to one line."""
    words: list[str] = []
    for line in lines:
        found = line.split()
        if not found and words:
            yield " ".join(words)
            words = []
        words += found
    if words:
        yield " ".join(words)


def _json_documents(path: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number} is not JSON ({error})") from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise DataError(f'{path}: line {number}: an object such as {{"text": "..."}} expected, got {line[:60]!r}')
        yield "\n".join(_paragraphs(record["text"].splitlines()))


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file, which is decompressed as its name says."""
    offset = 0
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    with opener(path, "rb") as file:
        for line in _raw_lines(path, file):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: UTF-8 text expected, got the byte 0x{line[error.start]:02x} at offset "
                    f"{offset + error.start}{' of the decompressed text' if opener is not open else ''}"
                ) from None
            yield text.removeprefix("\ufeff") if offset == 0 else text  # without a byte order mark
            offset += len(line)


def _raw_lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    try:
        yield from file
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged or cut short, it cannot be decompressed ({error})") from error
