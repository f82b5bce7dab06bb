"""Tables with named columns: TSV, CSV, JSON lines and parquet."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastlm.data.corpus import DataError
from fastlm.data.labelled.examples import Kind, TextExample
from fastlm.data.labelled.labels import unknown_label
from fastlm.data.labelled.lines import check_file, check_text, missing, read_csv, read_json_lines, read_tsv


class Columns(NamedTuple):
    """Names the columns of a table, or (conll) numbers them, from "0"; "-1" is the last one.

    text, pair, label: see TextExample; pair=None for single texts. id: None numbers the rows from "0".
    """

    text: str = "text"
    pair: str | None = None
    label: str = "label"
    id: str | None = None


Row = tuple[str, Mapping[str, Any]]  # ("FILE:LINE", {column: value})


def read_rows(path: Path, ending: str) -> Iterator[Row]:
    """Yields the rows of a table. ending: "tsv", "csv" (both with a header), "jsonl" or "parquet".

    Quotes are text in a TSV file, and quote in a CSV file. Raises DataError, with file and line, for what is not such a
    table, and ModuleNotFoundError for parquet without pyarrow.
    """
    if ending in ("tsv", "csv"):
        return with_header(path, (read_tsv if ending == "tsv" else read_csv)(path))
    return read_json_lines(path) if ending == "jsonl" else _read_parquet(path)


def with_header(path: Path, rows: Iterator[tuple[str, list[str]]]) -> Iterator[Row]:
    """Names the cells of each row by the first row. Raises DataError for a row of another length."""
    header = take_header(path, rows)
    for where, cells in rows:
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(header)} columns expected, as in the header, got {len(cells)}")
        yield where, dict(zip(header, cells, strict=True))


def take_header(path: Path, rows: Iterator[tuple[str, list[str]]]) -> list[str]:
    """Takes the names of columns, the first row. Raises DataError for a file without one, and for a repeated name."""
    where, header = next(rows, (str(path), []))
    if not header:
        raise DataError(f"{path}: a header and rows expected, got an empty file")
    header = [name.strip() for name in header]
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"{where}: the header names {', '.join(map(repr, repeated))} twice")
    return header


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pyarrow is not installed: pip install 'fastlm[parquet]'", name=error.name) from None
    check_file(path)
    try:
        with parquet.ParquetFile(path) as file:
            rows = (values for batch in file.iter_batches() for values in batch.to_pylist())
            for number, values in enumerate(rows, start=1):
                yield f"{path}:row {number}", values
    except ArrowException as error:
        raise DataError(f"{path}: not a parquet file that can be read ({error})") from None


def read_texts(
    rows: Iterator[Row], columns: Columns, kind: Kind, labels: Sequence[str] | None, labelled: bool
) -> list[TextExample]:
    """Returns the examples of a table for classification (whose classes are `labels`, or any) or regression."""
    return [
        text_example(values, where, str(number), columns, kind, labels, labelled)
        for number, (where, values) in enumerate(rows)
    ]


def text_example(
    values: Mapping[str, Any],
    where: str,
    number: str,
    columns: Columns,
    kind: Kind,
    labels: Sequence[str] | None = None,
    labelled: bool = True,
) -> TextExample:
    """Returns the example of a row. labelled=False: its label may be missing or empty.

    Raises DataError for a missing column, a text that is no string, and a label that is no class, or no number.
    """
    text = _text(values, columns.text, where)
    pair = None if columns.pair is None else _text(values, columns.pair, where)
    label = read_label(values, columns.label, where, _number if kind == "regression" else _class_name, labelled)
    if labels is not None and label is not None and label not in labels:
        raise unknown_label(str(label), labels, where)
    return TextExample(read_id(values, columns.id, where, number), text, pair, label, where)


def read_id(values: Mapping[str, Any], column: str | None, where: str, number: str) -> str:
    """Returns the id of a row: that of its column, or else `number`."""
    if column is None:
        return number
    if column not in values:
        raise missing(where, column, values)
    return str(values[column])


def read_label(
    values: Mapping[str, Any], column: str, where: str, convert: Callable[[Any, str], Any], labelled: bool
) -> Any:
    """Returns the converted label of a row, or None if it has none and labelled=False."""
    found = values.get(column)
    if isinstance(found, str):
        found = found.strip()
    if found is not None and found != "":
        return convert(found, f'{where}: "{column}"')
    if not labelled:
        return None
    if column not in values:
        raise missing(where, column, values)
    raise DataError(f'{where}: "{column}": a label expected, got nothing')


def _text(values: Mapping[str, Any], column: str, where: str) -> str:
    if column not in values:
        raise missing(where, column, values)
    return check_text(values[column], f'{where}: "{column}"').strip()


def _class_name(value: Any, where: str) -> str:
    """Returns the name of a class: a string itself, 1 as "1", true as "true"."""
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    return check_text(value, where)


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise DataError(f"{where}: a number expected, got {value!r}")
    return number
