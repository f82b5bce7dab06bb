"""fastlm convert: between fastlm's files and transformers'."""

from __future__ import annotations

import argparse
from typing import Any

from fastlm.commands import import_torch


def add_parser(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = commands.add_parser(
        "convert",
        help="write a model as transformers' files, or transformers' model as fastlm's",
        description="Writes a run's or a model's folder as a folder of transformers, or a folder of transformers as a "
        "fastlm model's folder. It says what the other side cannot hold.",
    )
    parser.add_argument("source", help="run folder, model's folder, or folder of transformers")
    parser.add_argument("target", help="folder to write")
    parser.add_argument("--drop", nargs="+", default=[], metavar="NAME", help="heads, tensors or modules to leave out")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    import_torch()
    from fastlm.inference.convert import convert

    print("\n".join(convert(options.source, options.target, drop=options.drop)))
    return 0
