"""The formats of labelled data by name: how to read a file, its labels, its scores, and what a benchmark accepts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from fastlm.data.corpus import DataError
from fastlm.data.labelled import choices, glue, records, squad
from fastlm.data.labelled.conll import read_conll
from fastlm.data.labelled.examples import KINDS, Example, Kind, Notify, to_stderr
from fastlm.data.labelled.lines import Skipped, read_json_lines, read_tsv
from fastlm.data.labelled.tables import Columns, read_rows, read_texts, text_example

TABLES = ("tsv", "csv", "jsonl", "parquet")  # the generic formats, which take columns and a kind
_SNLI = ("contradiction", "entailment", "neutral")
_SCITAIL = ("entails", "neutral")
_TAGGING_SCORES = ("entity_f1", "entity_precision", "entity_recall", "token_accuracy")
_SCORES: dict[Kind, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "regression": ("pearson", "spearman"),
    "choice": ("accuracy",),
    "span": ("squad2_f1", "squad2_exact"),
    "tagging": _TAGGING_SCORES,
}


class Read(Protocol):
    """Reads all examples of a file (RACE: of a folder).

    labelled=False is for test and prediction files: a label may then be missing, and is read if it is there.
    `notify` is told how many rows were skipped, and why. Raises DataError with the file and the line.
    """

    def __call__(self, path: Path, notify: Notify = to_stderr, *, labelled: bool = True) -> list[Example]: ...


class Format(NamedTuple):
    """Describes a format.

    labels: the classes in their fixed order, or None: those of the training file (`labels.label_names`).
    scores: names in `evaluate.scores.SCORES`; the first one selects the best model. `evaluate.scores.scores_for`
    replaces those of tags that mark no entities.
    submission: `submission(folder, ids, predictions)` writes the files that the benchmark accepts and returns their
    paths, or None. Predictions are labels' names, numbers (regression), texts (squad1), or pairs of a text and the odds
    of no answer (squad2).
    group: returns the part of the data that an example belongs to, whose scores are reported, too (RACE), or None.
    """

    name: str
    kind: Kind
    read: Read
    labels: tuple[str, ...] | None
    scores: tuple[str, ...]
    submission: Callable[[Path, Sequence[str], Sequence], list[Path]] | None = None
    group: Callable[[Example], str] | None = None


def find_format(name: str, *, columns: Columns | None = None, kind: Kind | None = None) -> Format:
    """Returns the format called `name`; case, dots, dashes and underscores do not matter.

    The generic ones ("tsv", "csv", "jsonl", "parquet") take a `kind` ("classification" by default) and `columns`; tsv
    and csv are for classification and regression only. "conll" takes `columns`, whose text and label are numbers.
    Raises ValueError for an unknown name, and for options that the format does not have.
    """
    key = _key(name)
    if key in TABLES:
        return _table(key, columns, kind or "classification")
    if key not in _FORMATS:
        raise ValueError(f"format: one of {', '.join(format_names())} expected, got {name!r}")
    if columns is not None and key == "conll":
        word, tag = _column_number(columns.text), _column_number(columns.label)
        made = _FORMATS[key]._replace(read=_reader(partial(read_conll, word=word, tag=tag)))
    elif columns is not None:
        raise ValueError(f"columns: the format {name} has columns of its own; {', '.join(TABLES)} and conll take any")
    else:
        made = _FORMATS[key]
    if kind not in (None, made.kind):
        raise ValueError(f"kind: the format {name} is for {made.kind}, got {kind!r}")
    return made


def format_names() -> tuple[str, ...]:
    """Returns the names of all formats."""
    return (*(made.name for made in _FORMATS.values()), *TABLES)


def _key(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _column_number(name: str) -> int:
    try:
        return int(name)
    except ValueError:
        raise ValueError(f"columns: the columns of conll are numbers, from 0; -1 is the last; got {name!r}") from None


def _reader(read: Callable[[Path, Notify, bool], list[Example]]) -> Read:
    """Returns a reader with `Read`'s signature, which also refuses a file without examples."""

    def reader(path: Path, notify: Notify = to_stderr, *, labelled: bool = True) -> list[Example]:
        examples = read(Path(path), notify, labelled)
        if not examples:
            raise DataError(f"{path}: examples expected, got none")
        return examples

    return reader


def _without_notes(read: Callable[[Path, bool], list[Example]]) -> Read:
    return _reader(lambda path, notify, labelled: read(path, labelled))


def _table(ending: str, columns: Columns | None, kind: Kind) -> Format:
    if kind not in KINDS:
        raise ValueError(f"kind: one of {', '.join(KINDS)} expected, got {kind!r}")
    texts = kind in ("classification", "regression")
    if not texts and ending in ("tsv", "csv"):
        raise ValueError(f"kind: {ending} is for classification and regression; use jsonl for {kind}")
    if not texts and columns is not None:
        raise ValueError(f"columns: the keys of {kind} in {ending} are fixed (see fastlm.data.labelled.records)")

    def read(path: Path, labelled: bool) -> list[Example]:
        rows = read_rows(path, ending)
        if texts and (columns is not None or ending in ("tsv", "csv")):
            return read_texts(rows, columns or Columns(), kind, None, labelled)
        return [records.example(kind, row, where, str(n), labelled=labelled) for n, (where, row) in enumerate(rows)]

    return Format(ending, kind, _without_notes(read), None, _SCORES[kind])


def _read_snli(path: Path, notify: Notify, labelled: bool) -> list[Example]:
    """Reads SNLI's JSON lines. Pairs on which the annotators did not agree ("-") are skipped if labels are needed."""
    skipped, examples = Skipped(path), []
    for number, (where, record) in enumerate(read_json_lines(path)):
        if record.get("gold_label") == "-":
            if labelled:
                skipped.add('without a gold label ("-") skipped', where)
                continue
            record = {**record, "gold_label": None}
        columns = Columns("sentence1", "sentence2", "gold_label", "pairID" if "pairID" in record else None)
        examples.append(text_example(record, where, str(number), columns, "classification", _SNLI, labelled))
    skipped.report(notify)
    return examples


def _read_scitail(path: Path, labelled: bool) -> list[Example]:
    """Reads SciTail's TSV, which has no header: premise, hypothesis, label. A test file may lack the label."""
    names, examples = ("premise", "hypothesis", "label"), []
    for number, (where, cells) in enumerate(read_tsv(path)):
        if len(cells) != 3 and (labelled or len(cells) != 2):
            raise DataError(f"{where}: 3 columns ({', '.join(names)}) without a header expected, got {len(cells)}")
        row, columns = dict(zip(names, cells, strict=False)), Columns(*names)
        examples.append(text_example(row, where, str(number), columns, "classification", _SCITAIL, labelled))
    return examples


def _glue(name: str) -> Format:
    task = glue.TASKS[name]
    kind: Kind = "regression" if task.labels is None else "classification"
    read, write = partial(glue.read_glue, name=name), partial(glue.write_submission, name=name)
    return Format(name, kind, _reader(read), task.labels, task.scores, write)


def _choice(name: str, read: Callable[[Path, bool], list[Example]], group=None) -> Format:
    return Format(name, "choice", _without_notes(read), None, _SCORES["choice"], None, group)


def _squad(version: int, write: Callable) -> Format:
    scores = (f"squad{version}_f1", f"squad{version}_exact")
    read = _without_notes(partial(squad.read_squad, version=version))
    return Format(f"squad{version}", "span", read, None, scores, write)


def _conll(name: str, **columns: int) -> Format:
    return Format(name, "tagging", _reader(partial(read_conll, **columns)), None, _TAGGING_SCORES)


_FORMATS = {
    _key(made.name): made
    for made in (
        *(_glue(name) for name in glue.TASKS),
        Format("snli", "classification", _reader(_read_snli), _SNLI, ("accuracy",)),
        Format("scitail", "classification", _without_notes(_read_scitail), _SCITAIL, ("accuracy",)),
        _squad(1, squad.write_predictions),
        _squad(2, squad.write_predictions2),
        _conll("conll"),
        _conll("conll2000", word=0, tag=2),
        _conll("conll2003", word=0, tag=3),
        _choice("swag", choices.read_swag),
        _choice("race", choices.read_race, choices.race_level),
        _choice("story-cloze", choices.read_story_cloze),
        _choice("commonsenseqa", choices.read_commonsenseqa),
    )
}
