"""Examples of any kind from a JSON object each: a line of a .jsonl file, of standard input, or a row of parquet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastlm.data.corpus import DataError
from fastlm.data.labelled.choices import choice_example
from fastlm.data.labelled.conll import to_bio
from fastlm.data.labelled.examples import Example, Kind, TaggedExample
from fastlm.data.labelled.lines import check_text, expect_list, expect_text
from fastlm.data.labelled.squad import span_example
from fastlm.data.labelled.tables import Columns, read_id, text_example


def example(
    kind: Kind,
    record: Mapping[str, Any],
    where: str,
    number: str,
    *,
    columns: Columns | None = None,
    labelled: bool = True,
) -> Example:
    """Returns the example that a JSON object holds; labelled=False for one that may have no label.

    | kind | keys |
    |---|---|
    | classification, regression | those that `columns` names: by default "text" and "label" |
    | choice | "context", "choices", "label" (the index of the right one), "question" (optional) |
    | span | "question", "context", "answers": [{"text", "answer_start"}], "is_impossible" (optional) |
    | tagging | "words", "tags", "document" (a number, optional: each sentence is a document of its own) |

    "id" is optional; `number` replaces it. Raises DataError, which begins with `where`, for anything else.
    """
    if kind in ("classification", "regression"):
        columns = columns or Columns(id="id" if "id" in record else None)
        return text_example(record, where, number, columns, kind, None, labelled)
    if kind == "choice":
        return choice_example(record, where, number, labelled)
    id = read_id(record, "id" if "id" in record else None, where, number)
    if kind == "span":
        values = {key: value for key, value in record.items() if value is not None}
        return span_example(values, expect_text(values, "context", where), where, id, labelled, version=2)
    return _tagged(dict(record), where, id, int(number), labelled)


def _tagged(record: dict[str, Any], where: str, id: str, number: int, labelled: bool) -> TaggedExample:
    words = tuple(check_text(word, f'{where}: "words"') for word in expect_list(record, "words", where))
    if not words or "" in words:
        raise DataError(f'{where}: "words": words expected, got {"an empty one" if words else "none"}')
    document = number if record.get("document") is None else record["document"]
    if isinstance(document, bool) or not isinstance(document, int):
        raise DataError(f'{where}: "document": a whole number expected, got {document!r}')
    if record.get("tags") is None and not labelled:
        return TaggedExample(id, words, None, document, where)
    tags = tuple(check_text(tag, f'{where}: "tags"') for tag in expect_list(record, "tags", where))
    if len(tags) != len(words):
        raise DataError(f"{where}: a tag per word expected, got {len(words)} words and {len(tags)} tags")
    return TaggedExample(id, words, to_bio(tags), document, where)
