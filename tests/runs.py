"""Tiny runs of pretraining on a few pages, for the tests of fastlm.train and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from corpora import chapters

from fastlm.recipes import RECIPES, Recipe
from fastlm.tasks import causal_lm
from fastlm.train import loop, trainer

STEPS = 12
# Dropout, micro-batches and, for BERT, two lengths: a resumed run has to continue all of these.
OPTIONS = {
    "gpt1_tiny": {"accumulation": 2},
    "bert_tiny": {"accumulation": 2, "phases": ((0.5, 24), (0.5, 32))},
}
TIMES = ("seconds", "tokens_per_second")


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """Returns a .jsonl of 30 KB with the beginnings of ten chapters."""
    return write_text(tmp_path_factory.mktemp("text"))


def write_text(folder: Path) -> Path:
    file = folder / "pages.jsonl"
    file.write_text("".join(json.dumps({"text": chapter[:3000]}) + "\n" for chapter in chapters()[:10]))
    return file


@pytest.fixture(scope="module")
def one_thread():
    """Fixes the number of threads, on which the order of sums, and so the last bits, depend."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def configuration(text: Path, model: str = "gpt1_tiny", **options) -> Recipe:
    return RECIPES[model].with_options(
        {"data": (str(text),), "device": "cpu", "precision": "fp32", "checkpoint_every": 4, "validate_every": 5}
        | {"backend": "reference", "validation_fraction": 0.2, "steps": STEPS}
        | OPTIONS[model]
        | options
    )


def run(recipe: Recipe, folder: Path, notes: list[str] | None = None) -> dict:
    notify = (notes if notes is not None else []).append
    record = {"record": recipe.to_json(), "name": recipe.name}
    with patch.object(causal_lm, "NEW_TOKENS", 5):
        return loop.train(recipe.task(), recipe.train, recipe.placement, folder, **record, notify=notify)


def losses(folder: Path) -> list[dict]:
    """Returns the records of metrics.jsonl without the entries that depend on a clock."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def before_update(monkeypatch, number: int, act) -> None:
    """Calls `act` at the start of update `number` (from 0)."""
    update = trainer.Trainer.update

    def updated(self, step):
        if step == number:
            act()
        return update(self, step)

    monkeypatch.setattr(trainer.Trainer, "update", updated)
