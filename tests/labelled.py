"""Tiny pretrained models and tiny labelled files, for the tests of fine-tuning."""

import functools
import json
from pathlib import Path

import torch

from fastlm import models
from fastlm.data import tokenizer
from fastlm.data.inputs import GPT1_SPECIALS
from fastlm.data.tokenizer import Tokenizer
from fastlm.models import PRESETS

TEXT = (
    "the film is a good one and the story is fine . a bad film , a dull story , and no one is fine .\n"
    "who wrote the book ? anna wrote the book in paris in 1895 . bob reads it in rome ; anna lives in paris .\n"
    "what is red ? the red house is in rome . the blue house is not red , it is blue . is it good or bad ?\n"
)


@functools.cache
def wordpiece() -> Tokenizer:
    """Returns a tokenizer in which frequent words are one piece, and others several."""
    return tokenizer.train_wordpiece([TEXT] * 3, 320)


@functools.cache
def bpe() -> Tokenizer:
    return tokenizer.train_bpe([TEXT] * 3, 320)


def bpe_with_specials() -> Tokenizer:
    return bpe().with_specials(GPT1_SPECIALS)


def save_start(folder: Path, preset: str, **changes) -> Path:
    """Writes a freshly initialised model without dropout, unless `changes` say otherwise, and its tokenizer."""
    made_with = wordpiece() if preset.startswith("bert") else bpe()
    torch.manual_seed(1)
    sizes = {"context": 64, "layers": 2, "hidden": 64, "heads": 2, "intermediate": 128}
    without_dropout = {"dropout": 0.0, "attention_dropout": 0.0, "embedding_dropout": 0.0}
    config = type(PRESETS[preset])(**{"vocab_size": made_with.vocab_size} | sizes | without_dropout | changes)
    models.build(config).save(folder)
    made_with.save(folder / "tokenizer.json")
    return folder


def write_tsv(file: Path, rows: list[tuple]) -> Path:
    """Writes a table; the first row names the columns."""
    file.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return file


def write_jsonl(file: Path, records: list[dict]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file
