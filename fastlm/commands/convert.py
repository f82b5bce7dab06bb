"""fastlm convert: between fastlm's files, transformers' and the original ones."""

from __future__ import annotations

import argparse
from typing import Any

from fastlm.commands import import_torch


def add_parser(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = commands.add_parser(
        "convert",
        help="write a model as transformers' or the original code's files, or such files as fastlm's",
        description="Writes a run's or a model's folder as a folder of transformers, or a folder of transformers or of "
        "the original code (OpenAI's params_*.npy, Google's variables as a .npz) as a fastlm model's folder. The "
        "source's format is found by its files. It says what the other side cannot hold.",
    )
    parser.add_argument("source", help="run folder, model's folder, folder of transformers, or original files")
    parser.add_argument("target", help="folder to write")
    parser.add_argument("--drop", nargs="+", default=[], metavar="NAME", help="heads, tensors or modules to leave out")
    parser.add_argument(
        "--to",
        choices=("fastlm", "transformers", "openai", "google"),
        help="format to write (default: transformers for a fastlm model, fastlm for others)",
    )
    parser.add_argument(
        "--text-steps",
        choices=("transformers", "original"),
        help="of OpenAI's files: whose steps come before the byte-pair encoding, those of transformers' tokenizer or "
        "of OpenAI's own code, which needs pip install 'fastlm[original]' (default: transformers)",
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    import_torch()
    from fastlm.inference.convert import convert

    given = {"drop": options.drop, "to": options.to, "text_steps": options.text_steps}
    print("\n".join(convert(options.source, options.target, **given)))
    return 0
