"""Corpora: documents of paragraphs from plain text and JSON lines.

A document is a str whose paragraphs are separated by one newline; inside a paragraph every run of white space is one
space, so hard-wrapped text is unwrapped. In a .txt file

- document="blank-line": a blank line ends a document, so a document is one paragraph (as in BERT's original code);
- document="file": the file is one document, and a blank line ends a paragraph (for a book or an article per file).

In a .jsonl file each line is an object whose "text" is one document, in which a blank line ends a paragraph. Both kinds
may be compressed: .txt.xz, .txt.gz, .jsonl.xz, .jsonl.gz. Text is UTF-8. Lines end in LF, CR LF or CR; form feeds and
Unicode's line separators are ordinary white space. All byte order marks are removed.

Reading takes linear time for any text. `Documents.streams` needs bounded memory, plus one line of a .jsonl file.
"""

from __future__ import annotations

import codecs
import gzip
import importlib.resources
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

ENDINGS = tuple(kind + packing for kind in (".txt", ".jsonl") for packing in ("", ".xz", ".gz"))
DOCUMENT = ("blank-line", "file")
BLOCK = 1 << 16  # bytes, or characters, per read
_SPACES = re.compile(r"\s{2,}|[^\S ]")  # any white space but a single space
_SURROGATE = re.compile("[\ud800-\udfff]")


class DataError(ValueError):
    """Reports text, a tokenizer or shards that cannot be used: where, why, and what would be right."""


def novels() -> Path:
    """Returns the path of the bundled corpus: Jane Austen's six novels (public domain), 4 MB.

    Each of their 269 chapters is a document. The text is from the R package janeaustenr, without one editor's note.
    """
    return Path(str(importlib.resources.files("fastlm.data") / "novels.jsonl.xz"))


class Fragment(NamedTuple):
    """Holds a piece of a paragraph, of at most 3 * BLOCK characters.

    Joining the fragments of a paragraph gives the paragraph. They are cut between words; only a word longer than BLOCK
    is cut inside. `ends` marks the last fragment, whose text may be empty.
    """

    text: str
    ends: bool


class Documents:
    """Reads the documents of some files; each iteration reads them again."""

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
        """Yields each document as one str."""
        for fragments in self.streams():
            yield "".join(text + "\n" if ends else text for text, ends in fragments)[:-1]

    def streams(self) -> Iterator[Iterator[Fragment]]:
        """Yields each document as an iterator of its fragments, which is valid until the next document is taken."""
        empty = True
        for path in self.paths:
            for _, numbered in groupby(self._fragments(path), key=lambda pair: pair[0]):
                empty = False
                yield (fragment for _, fragment in numbered)
        if empty:
            raise DataError(f"{', '.join(map(str, self.paths))}: no text in it")

    def _fragments(self, path: Path) -> Iterator[tuple[int, Fragment]]:
        """Yields the fragments of a file, each with the number of its document."""
        if ".jsonl" in (path.suffix, Path(path.stem).suffix):
            for number, text in enumerate(_json_texts(path)):
                yield from ((number, fragment) for fragment in unwrap(text))
            return
        number = 0
        for fragment in _unwrap(_blocks(path)):
            yield number, fragment
            number += fragment.ends and self.document == "blank-line"


def read_documents(paths: str | Path | Iterable[str | Path], document: str = "blank-line") -> Documents:
    """Returns the documents of text files, in order, as an iterable that can be read again and again.

    Raises DataError while reading: for a file that is not UTF-8 or holds a NUL byte, a line that is not a JSON object
    with a "text" of valid Unicode, a damaged compressed file, and if there is no text. The message names the place.
    """
    return Documents(paths, document)


def unwrap(text: str) -> Iterator[Fragment]:
    """Yields the fragments of a text in which a blank line ends a paragraph."""
    return _unwrap(text[start : start + BLOCK] for start in range(0, len(text), BLOCK))


def _unwrap(blocks: Iterable[str]) -> Iterator[Fragment]:
    """Yields the fragments of a text that comes in blocks, which may end anywhere."""
    # Each run of white space becomes " ", "\n" or "\n\n"; the last ends a paragraph. The end of a block (`rest`) waits
    # for the next block, where its word or white space may continue. `rest` starts as if a paragraph had just ended.
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    rest, in_paragraph = "\n\n", False
    for block in chain(blocks, ["\n\n"]):
        text = newlines.decode(block).replace("\ufeff", "")
        text, rest = _whole_words(_SPACES.sub(_one_space, rest + text))
        *ended, unfinished = text.split("\n\n")
        for paragraph in ended:
            if in_paragraph or paragraph:
                yield Fragment(paragraph.replace("\n", " "), True)
            in_paragraph = False
        if unfinished:
            yield Fragment(unfinished.replace("\n", " "), False)
            in_paragraph = True
    if in_paragraph:
        yield Fragment("", True)


def _one_space(spaces: re.Match[str]) -> str:
    """Returns the replacement of a run of white space: a space, one newline, or two if the run holds two or more."""
    return (" ", "\n", "\n\n")[min(2, spaces[0].count("\n"))]


def _whole_words(text: str) -> tuple[str, str]:
    """Splits a text in two; the second part may continue in the next block.

    The second part is the white space at the end of the text, or else the last word and the white space before it. It
    is empty if the text is a single word of at least BLOCK characters: this bounds the memory.
    """
    end = len(text.rstrip())
    if end == len(text):
        end = max(text.rfind(" "), text.rfind("\n"), 0)
        end -= text[end - 1 : end + 1] == "\n\n"
        if end == 0 and len(text) >= BLOCK:
            end = len(text)
    return text[:end], text[end:]


def _json_texts(path: Path) -> Iterator[str]:
    """Yields the "text" of each line of a .jsonl file."""
    for number, line in enumerate(_lines(path), start=1):
        line = line.lstrip("\ufeff")  # concatenated files have byte order marks in the middle
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number} is not JSON ({error})") from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise DataError(f'{path}: line {number}: an object such as {{"text": "..."}} expected, got {line[:60]!r}')
        if half := _SURROGATE.search(record["text"]):
            raise DataError(
                f'{path}: line {number}: "text" holds \\u{ord(half[0]):04x} without the other half of its surrogate '
                f"pair (character {half.start()}); both expected, or neither"
            )
        yield record["text"]


def _blocks(path: Path) -> Iterator[str]:
    """Yields the decompressed text of a file in blocks, which may end anywhere."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with _reading(path) as file:
        for block in chain(iter(lambda: file.read(BLOCK), b""), [b""]):
            begin = offset - len(decoder.getstate()[0])
            offset += len(block)
            with _utf8(path, begin):
                text = decoder.decode(block, final=not block)
            if "\0" in text:
                zero = offset - len(block) + block.index(b"\0")
                raise DataError(f"{path}: UTF-8 text expected, got the byte 0x00 {_at(path, zero)} (is it UTF-16?)")
            yield text


def _lines(path: Path) -> Iterator[str]:
    """Yields the lines of a decompressed file."""
    offset = 0
    with _reading(path) as file:
        for line in file:
            with _utf8(path, offset):
                yield line.decode()
            offset += len(line)


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for reading and decompresses it by its suffix. Raises DataError if it is damaged."""
    with {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)(path, "rb") as file:
        try:
            yield file
        except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: damaged or cut short, it cannot be decompressed ({error})") from error


@contextmanager
def _utf8(path: Path, offset: int) -> Iterator[None]:
    """Turns a UnicodeDecodeError in bytes that begin at `offset` of a file into a DataError."""
    try:
        yield
    except UnicodeDecodeError as error:
        found = error.object[error.start]
        raise DataError(
            f"{path}: UTF-8 text expected, got the byte 0x{found:02x} {_at(path, offset + error.start)}"
        ) from None


def _at(path: Path, offset: int) -> str:
    return f"at offset {offset}{' of the decompressed text' if path.suffix in ('.xz', '.gz') else ''}"
