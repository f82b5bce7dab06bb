"""GLUE: the eleven tasks' own TSV files, and the files that its website accepts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastlm.data.corpus import DataError
from fastlm.data.labelled.examples import Notify, TextExample
from fastlm.data.labelled.lines import Skipped, missing, read_tsv
from fastlm.data.labelled.tables import Columns, take_header, text_example
from fastlm.files import write_bytes

_NLI = ("contradiction", "entailment", "neutral")
_RTE = ("entailment", "not_entailment")
_BINARY = ("0", "1")


class GlueTask(NamedTuple):
    """Describes a task of GLUE.

    submission: the name of the file that GLUE accepts. text, pair, label: names of columns; the name after "|" is that
    in another file of the task. labels: in the order of BERT's original code, or None for regression.
    """

    submission: str
    text: str
    pair: str | None
    label: str
    labels: tuple[str, ...] | None
    scores: tuple[str, ...]


TASKS = {
    "cola": GlueTask("CoLA.tsv", "sentence", None, "label", _BINARY, ("matthews", "accuracy")),
    "sst2": GlueTask("SST-2.tsv", "sentence", None, "label", _BINARY, ("accuracy",)),
    "mrpc": GlueTask("MRPC.tsv", "#1 String", "#2 String", "Quality", _BINARY, ("f1", "accuracy")),
    "stsb": GlueTask("STS-B.tsv", "sentence1", "sentence2", "score", None, ("pearson", "spearman")),
    "qqp": GlueTask("QQP.tsv", "question1", "question2", "is_duplicate", _BINARY, ("f1", "accuracy")),
    "mnli": GlueTask("MNLI-m.tsv", "sentence1", "sentence2", "gold_label", _NLI, ("accuracy",)),
    "mnli-mm": GlueTask("MNLI-mm.tsv", "sentence1", "sentence2", "gold_label", _NLI, ("accuracy",)),
    "qnli": GlueTask("QNLI.tsv", "question", "sentence", "label", _RTE, ("accuracy",)),
    "rte": GlueTask("RTE.tsv", "sentence1", "sentence2", "label", _RTE, ("accuracy",)),
    "wnli": GlueTask("WNLI.tsv", "sentence1", "sentence2", "label", _BINARY, ("accuracy",)),
    "ax": GlueTask(
        "AX.tsv", "sentence1|Premise", "sentence2|Hypothesis", "label|Label", _NLI, ("matthews", "accuracy")
    ),
}
_SCORES = (0.0, 5.0)  # of STS-B
_OTHER_NAMES = {"contradictory": "contradiction"}  # in files derived from MNLI


def read_glue(path: Path, notify: Notify, labelled: bool, *, name: str) -> list[TextExample]:
    """Reads a train, dev or test file of the task `name`. The id is the file's "index" or "id", or the row's number.

    Quotes are text. In QQP, rows with missing columns are skipped; in MNLI, examples without a gold label ("-").
    Raises DataError, with file and line, for a missing column, a short row and an unknown label.
    """
    task, skipped = TASKS[name], Skipped(path)
    rows = read_tsv(path)
    header = _cola_header(path) if name == "cola" else None
    if header is None:
        header = take_header(path, rows)
    columns = _columns(task, header, path, labelled)
    examples = []
    for number, (where, cells) in enumerate(rows):
        if len(cells) < len(header):
            if name != "qqp":
                raise DataError(f"{where}: {len(header)} columns expected, as in the header, got {len(cells)}")
            skipped.add("with missing columns skipped", where)
            continue
        if len(cells) > len(header):
            skipped.add("with more columns than the header, whose last ones are not read", where)
        values = dict(zip(header, cells, strict=False))
        if columns.label in values:
            label = values[columns.label].strip()
            if label == "-" and task.labels == _NLI:
                if labelled:
                    skipped.add('without a gold label ("-") skipped', where)
                    continue
                label = ""
            values[columns.label] = _OTHER_NAMES.get(label, label)
        kind = "regression" if task.labels is None else "classification"
        examples.append(text_example(values, where, str(number), columns, kind, task.labels, labelled))
    skipped.report(notify)
    if not examples:
        raise DataError(f"{path}: a header and rows expected, got no rows")
    return examples


def write_submission(folder: Path, ids: Sequence[str], predictions: Sequence[str | float], *, name: str) -> list[Path]:
    """Writes the file that GLUE accepts for the task `name`, "index<TAB>prediction". Returns [its path].

    predictions: labels' names; numbers for STS-B, which are clipped to [0, 5]. Raises ValueError for others.
    """
    task = TASKS[name]
    if len(ids) != len(predictions):
        raise ValueError(f"{task.submission}: a prediction per id expected, got {len(predictions)} for {len(ids)} ids")
    lines = ["index\tprediction"]
    for id, prediction in zip(ids, predictions, strict=True):
        if task.labels is None:
            low, high = _SCORES
            if prediction != prediction:
                raise ValueError(f"{task.submission}: a number expected for the id {id}, got {prediction}")
            prediction = f"{min(max(float(prediction), low), high):.3f}"
        elif prediction not in task.labels:
            raise ValueError(f"{task.submission}: one of {', '.join(task.labels)} expected, got {prediction!r}")
        lines.append(f"{id}\t{prediction}")
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / task.submission, ("\n".join(lines) + "\n").encode())
    return [folder / task.submission]


def _cola_header(path: Path) -> list[str] | None:
    """Returns the columns of CoLA's train and dev files, which have no header, or None for its test file."""
    where, cells = next(read_tsv(path), (str(path), []))
    if len(cells) == 4:
        return ["source", "label", "mark", "sentence"]
    if cells in ([], ["index", "sentence"]):
        return None
    raise DataError(
        f"{where}: CoLA's four columns (source, label, mark, sentence), or the header of its test file (index, "
        f"sentence), expected, got {len(cells)} columns"
    )


def _columns(task: GlueTask, header: Sequence[str], path: Path, labelled: bool) -> Columns:
    """Returns the names of the task's columns in a file. Raises DataError for one that is not there."""
    text, pair, label = (_named(name, header) for name in (task.text, task.pair, task.label))
    for name, wanted in ((text, True), (pair, True), (label, labelled)):
        if wanted and name is not None and name not in header:
            raise missing(f"{path}:1", name, header)
    return Columns(text, pair, label, next((id for id in ("index", "id") if id in header), None))


def _named(names: str | None, header: Sequence[str]) -> str | None:
    """Returns the name among `names` that the header has, or else the first one."""
    if names is None:
        return None
    return next((name for name in names.split("|") if name in header), names.split("|")[0])
