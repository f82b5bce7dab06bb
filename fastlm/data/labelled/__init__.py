"""Labelled examples for fine-tuning: the benchmarks' own files, and any table with named columns.

Imports neither torch nor numpy, and pyarrow only to read parquet.
"""

from typing import TYPE_CHECKING

from fastlm._lazy import attach

if TYPE_CHECKING:
    from fastlm.data.labelled.examples import Answer, ChoiceExample, SpanExample, TaggedExample, TextExample
    from fastlm.data.labelled.formats import Format, find_format, format_names
    from fastlm.data.labelled.labels import check_labels, label_names
    from fastlm.data.labelled.tables import Columns

__all__ = [
    "Answer",
    "ChoiceExample",
    "Columns",
    "Format",
    "SpanExample",
    "TaggedExample",
    "TextExample",
    "check_labels",
    "find_format",
    "format_names",
    "label_names",
]

_NAMES = {
    "examples": ("Answer", "ChoiceExample", "SpanExample", "TaggedExample", "TextExample"),
    "formats": ("Format", "find_format", "format_names"),
    "labels": ("check_labels", "label_names"),
    "tables": ("Columns",),
}
__getattr__, __dir__ = attach(__name__, _NAMES)
