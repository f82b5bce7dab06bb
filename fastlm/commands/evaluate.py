"""fastlm evaluate: the scores of a fine-tuned model on a file of labelled examples."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlm._options import options as options_of
from fastlm.commands import import_torch
from fastlm.commands.arguments import add_option
from fastlm.data.labelled.config import LabelledConfig
from fastlm.run_folder import RunFolder

if TYPE_CHECKING:
    from fastlm.data.labelled.formats import Format
    from fastlm.inference.predict import Predictor

READING = ("format", "kind", "text_column", "pair_column", "label_column", "id_column")  # how a file is read


def add_parser(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = commands.add_parser(
        "evaluate",
        help="score a fine-tuned model on a file",
        description="Prints the scores of a fine-tuned model on a file of labelled examples.",
        argument_default=argparse.SUPPRESS,
    )
    add_model_and_file(parser, "file of labelled examples")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=run)


def add_model_and_file(parser: argparse.ArgumentParser, file: str, **settings: Any) -> None:
    """Adds the arguments that evaluate and predict share."""
    parser.add_argument("run", help="run folder or model's folder of a fine-tuned model, or a folder of transformers")
    parser.add_argument("file", help=file, **settings)
    for option in options_of(LabelledConfig()):
        if option.name in READING:
            add_option(parser, option)
    parser.add_argument("--batch-size", type=int, default=32, help="examples per batch (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")


def run(options: argparse.Namespace) -> int:
    import_torch()
    from fastlm.inference.predict import Predictor
    from fastlm.train.report import aligned

    predictor = Predictor.load(options.run, device=options.device)
    examples = format_of(options, predictor).read(Path(options.file))
    scores = predictor.scores(examples, batch_size=options.batch_size)
    if hasattr(options, "json"):
        print(json.dumps({"file": options.file, "examples": len(examples), **scores}))
        return 0
    rows = [[options.file, "examples", *scores], ["", f"{len(examples):,}", *(f"{v:.4f}" for v in scores.values())]]
    print("\n".join(aligned(rows)))
    return 0


def format_of(options: argparse.Namespace, predictor: Predictor) -> Format:
    """Returns the format of the file: as the options say, else as the run's own data was read.

    Raises ValueError if its examples are of another kind than the model's task.
    """
    from fastlm.data.labelled.formats import TABLES
    from fastlm.inference.load import is_run

    recorded = RunFolder(options.run).recorded().get("labelled", {}) if is_run(options.run) else {}
    given = {"format": predictor.task.format, **{name: recorded[name] for name in READING if name in recorded}}
    config = LabelledConfig(**given | {name: getattr(options, name) for name in READING if hasattr(options, name)})
    if config.format in TABLES and config.kind == "auto":
        config = replace(config, kind=predictor.task.kind)
    found = config.find_format()
    if found.kind != predictor.task.kind:
        raise ValueError(
            f"format: {found.name} is for {found.kind}, but the model in {options.run} was fine-tuned for "
            f"{predictor.task.kind}: give a format of that kind"
        )
    return found
