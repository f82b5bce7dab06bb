"""Reads files of labelled data by line, as CSV, TSV, JSON or JSON lines, with messages that name file and line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastlm.data.corpus import DataError
from fastlm.data.labelled.examples import Notify

_SURROGATE = re.compile("[\ud800-\udfff]")


def check_file(path: Path) -> None:
    """Raises DataError unless `path` is a file."""
    if not path.is_file():
        raise DataError(f"{path}: {'a file expected, got a folder' if path.is_dir() else 'no such file'}")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the number of each line, from 1, and its text without the line's end.

    Only LF and CR LF end a line: Unicode's separators, form feeds and a lone CR are text. A byte order mark at the
    beginning of the file is removed. Raises DataError for a file that is not there or not UTF-8.
    """
    check_file(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                found = error.object[error.start]
                raise DataError(f"{path}:{number}: UTF-8 text expected, got the byte 0x{found:02x}") from None
            if number == 1:
                text = text.removeprefix("\ufeff")
            yield number, text.removesuffix("\n").removesuffix("\r")


def read_tsv(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields ("FILE:LINE", the cells) of each line that is not blank. Quotes are text like any other."""
    for number, line in read_lines(path):
        if line.strip():
            yield f"{path}:{number}", line.split("\t")


def read_csv(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields ("FILE:LINE", the cells) of each row of a CSV file (RFC 4180), with the line that the row begins in."""
    reader = csv.reader((line + "\n" for _, line in read_lines(path)), strict=True)
    number = 1
    try:
        for cells in reader:
            if cells:
                yield f"{path}:{number}", cells
            number = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{number}: not a row of CSV ({error})") from None


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ("FILE:LINE", the object) of each line that is not blank."""
    for number, line in read_lines(path):
        if line.strip():
            where = f"{path}:{number}"
            yield where, expect_object(_parse(line, where), where)


def read_json(path: Path) -> tuple[str, dict[str, Any]]:
    """Returns a file's text, and the JSON object that it is."""
    text = "\n".join(line for _, line in read_lines(path))
    if not text.strip():
        raise DataError(f"{path}: a JSON object expected, got an empty file")
    return text, expect_object(_parse(text, str(path)), str(path))


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"{where}:{error.lineno}" if "\n" in text else where
        raise DataError(f"{at}: not JSON ({error.msg}, character {error.colno})") from None
    except RecursionError:
        raise DataError(f"{where}: not JSON that can be read (nested too deeply)") from None


def expect_object(value: Any, where: str) -> dict[str, Any]:
    """Returns `value`. Raises DataError if it is not a JSON object."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON object expected, got {_shown(value)}")
    return value


def expect_list(record: dict[str, Any], key: str, where: str) -> list[Any]:
    """Returns the list record[key]. Raises DataError if it is missing or not a list."""
    if key not in record:
        raise missing(where, key, record)
    if not isinstance(record[key], (list, tuple)):
        raise DataError(f'{where}: "{key}": a list expected, got {_shown(record[key])}')
    return list(record[key])


def expect_text(record: dict[str, Any], key: str, where: str) -> str:
    """Returns the string record[key]. Raises DataError if it is missing, no string, or holds half a surrogate pair."""
    if key not in record:
        raise missing(where, key, record)
    return check_text(record[key], f'{where}: "{key}"')


def check_text(value: Any, where: str) -> str:
    """Returns `value`. Raises DataError if it is not a string of valid Unicode."""
    if not isinstance(value, str):
        raise DataError(f"{where}: a string expected, got {_shown(value)}")
    if half := _SURROGATE.search(value):
        raise DataError(f"{where}: valid Unicode expected, got half a surrogate pair, \\u{ord(half[0]):04x}")
    return value


def missing(where: str, key: str, found: Any) -> DataError:
    """Returns the error of a column (or key) that is not there."""
    return DataError(f'{where}: no column "{key}"; there are {", ".join(map(str, found)) or "none"}')


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


class Skipped:
    """Counts the rows that a reader leaves out, by reason, and reports them, so that none is left out in silence."""

    def __init__(self, path: Path):
        self._path = path
        self._found: dict[str, tuple[int, str]] = {}  # {reason: (rows, where the first one is)}

    def add(self, reason: str, where: str) -> None:
        """Counts a row. The reason completes the sentence "FILE: 3 rows ..."."""
        count, first = self._found.get(reason, (0, where))
        self._found[reason] = count + 1, first

    def report(self, notify: Notify) -> None:
        """Tells `notify` one sentence per reason."""
        for reason, (count, first) in self._found.items():
            notify(f"{self._path}: {count} row{'s' if count > 1 else ''} {reason} (first: {first})")
