"""fastlm predict: predictions of a fine-tuned model, for a file or for a stream of lines."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fastlm.commands import import_torch
from fastlm.commands.evaluate import add_model_and_file, format_of
from fastlm.files import new_file

if TYPE_CHECKING:
    from fastlm.data.labelled.description import Description
    from fastlm.data.labelled.formats import Format

DESCRIPTION = (
    "Prints one JSON object per input, with probabilities. Inputs are the examples of a file, which needs no labels, "
    "or lines of stdin: a text per line, or a JSON object with the fields of an example (text, pair; context, "
    "question, choices; words)."
)


def add_parser(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = commands.add_parser(
        "predict",
        help="predict with a fine-tuned model, for a file or stdin",
        description=DESCRIPTION,
        argument_default=argparse.SUPPRESS,
    )
    add_model_and_file(parser, "file of examples (default: -, the lines of stdin)", nargs="?", default="-")
    parser.add_argument("--submission", metavar="FOLDER", help="write also the files that the task's benchmark accepts")
    parser.add_argument("--output", help="file for the predictions, written at the end (default: stdout)")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    import_torch()
    from fastlm.inference.predict import Predictor, examples_of_lines

    submission = getattr(options, "submission", None)
    if options.file == "-" and submission:
        raise ValueError("submission: a file of examples expected, since a submission needs their ids, got stdin")
    predictor = Predictor.load(options.run, device=options.device)
    if options.file == "-":
        examples = examples_of_lines(sys.stdin, predictor.task.kind)
        size = 1 if sys.stdin.isatty() else options.batch_size  # a person waits for an answer per line
        write = None
    else:
        format = format_of(options, predictor)
        write = submission_of(format) if submission else None
        examples, size = format.read(Path(options.file), labelled=False), options.batch_size
    with _output(getattr(options, "output", None)) as output:
        kept = _print_all(predictor.predict(examples, batch_size=size), output, keep=write is not None)
    for path in write(Path(submission), predictor.task, kept) if write else ():
        print(f"fastlm: wrote {path}", file=sys.stderr)
    return 0


Write = Callable[[Path, "Description", Sequence[dict[str, Any]]], list[Path]]


def submission_of(format: Format) -> Write:
    """Returns the writer of a benchmark's files. Raises ValueError if the format's benchmark has none."""
    if format.submission is None:
        raise ValueError(f"submission: {format.name} is no benchmark that takes files of predictions")

    def write(folder: Path, task: Description, predictions: Sequence[dict[str, Any]]) -> list[Path]:
        name = {"classification": "label", "regression": "score", "choice": "choice", "span": "answer"}[task.kind]
        values = [prediction[name] for prediction in predictions]
        if task.no_answer:
            values = [(p["answer"], p["null_odds"]) for p in predictions]
        return format.submission(folder, [prediction["id"] for prediction in predictions], values)

    return write


def _print_all(predictions: Iterator[dict[str, Any]], output: TextIO, *, keep: bool) -> list[dict[str, Any]]:
    """Prints a JSON line per prediction; returns them if they are kept."""
    kept = []
    try:
        for prediction in predictions:
            print(json.dumps(prediction, ensure_ascii=False), file=output, flush=True)
            kept += [prediction] if keep else []
    except BrokenPipeError:  # such as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit flushes into nothing
    return kept


@contextlib.contextmanager
def _output(file: str | None) -> Iterator[TextIO]:
    """Yields stdout, or a file that appears whole, at the end."""
    if file is None:
        yield sys.stdout
        return
    with new_file(Path(file)) as temporary, open(temporary, "w", encoding="utf-8") as output:
        yield output
