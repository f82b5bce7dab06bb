"""fastlm predict: predictions of a fine-tuned model, for a file or for a stream of lines."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from fastlm.commands.evaluate import add_model_and_file, format_of
from fastlm.files import new_file

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
    parser.add_argument("--output", help="file for the predictions, written at the end (default: stdout)")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    from fastlm.inference.predict import Predictor, examples_of_lines

    predictor = Predictor.load(options.run, device=options.device)
    if options.file == "-":
        examples = examples_of_lines(sys.stdin, predictor.task.kind)
        size = 1 if sys.stdin.isatty() else options.batch_size  # a person waits for an answer per line
    else:
        examples = format_of(options, predictor).read(Path(options.file), labelled=False)
        size = options.batch_size
    with _output(getattr(options, "output", None)) as output:
        return _print_all(predictor.predict(examples, batch_size=size), output)


def _print_all(predictions: Iterator[dict[str, Any]], output: TextIO) -> int:
    try:
        for prediction in predictions:
            print(json.dumps(prediction, ensure_ascii=False), file=output, flush=True)
    except BrokenPipeError:  # such as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit flushes into nothing
    return 0


@contextlib.contextmanager
def _output(file: str | None) -> Iterator[TextIO]:
    """Yields stdout, or a file that appears whole, at the end."""
    if file is None:
        yield sys.stdout
        return
    with new_file(Path(file)) as temporary, open(temporary, "w", encoding="utf-8") as output:
        yield output
