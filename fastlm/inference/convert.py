"""Converts a model between fastlm's files and transformers': `fastlm convert SOURCE TARGET`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Conversion(NamedTuple):
    """Says what was done: one sentence per line, for the command line."""

    model: str  # e.g. "BertForSequenceClassification" or "a fastlm BERT"
    lines: tuple[str, ...]  # tensors left out, fresh ones, differences


def convert(source: str | Path, target: str | Path, *, drop: Sequence[str] = ()) -> Conversion:
    """Writes a run's or model's folder as a folder of transformers', and a folder of transformers' (or a model of its
    hub) as a fastlm model's folder with its tokenizer and, for a fine-tuned model, task.json.

    Raises ValueError, with a sentence, for what transformers cannot hold, and the errors of `from_pretrained`.
    """
    raise NotImplementedError
