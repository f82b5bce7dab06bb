"""GPT-1's pretraining: Radford et al. 2018, section 4.1. The small ones suit runs of minutes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fastlm.data.config import CorpusConfig
from fastlm.models.configs import PRESETS
from fastlm.recipes.base import Recipe
from fastlm.train.config import TrainConfig

if TYPE_CHECKING:
    from fastlm.tasks.base import Task


def _task(recipe: Recipe) -> Task:
    from fastlm.tasks.causal_lm import CausalLM

    return CausalLM(recipe.model, recipe.corpus)


_FULL = Recipe(
    name="gpt1_full",
    make_task=_task,
    model=PRESETS["gpt1"],
    corpus=CorpusConfig(vocab_size=40478),
    train=TrainConfig(
        epochs=100,
        phases=((1.0, 512),),
        batch_size=64,
        learning_rate=2.5e-4,
        warmup=2000,
        decay="cosine",
        epsilon=1e-8,
    ),
)
_SMALL = replace(
    _FULL.train.with_length(minutes=3.0),
    phases=((1.0, 128),),
    batch_size=8,
    learning_rate=5e-4,
    warmup=100,
    beta2=0.99,
    validate_every=200,
    checkpoint_every=1_000_000,
    checkpoint_seconds=30.0,
)
_MINI = replace(_SMALL, phases=((1.0, 64),), batch_size=8, learning_rate=2e-3, warmup=20)
_TINY = replace(
    _FULL.train.with_length(steps=20),
    phases=((1.0, 16),),
    batch_size=4,
    learning_rate=1e-3,
    warmup=2,
    validate_every=10,
    validation_batches=2,
)

RECIPES = {
    "gpt1_full": _FULL,
    "gpt1_small": replace(
        _FULL, name="gpt1_small", model=PRESETS["gpt1_small"], corpus=CorpusConfig(vocab_size=4096), train=_SMALL
    ).with_options({"dropout": 0.0}),
    "gpt1_mini": replace(
        _FULL, name="gpt1_mini", model=PRESETS["gpt1_mini"], corpus=CorpusConfig(vocab_size=1024), train=_MINI
    ).with_options({"dropout": 0.0}),
    "gpt1_tiny": replace(
        _FULL, name="gpt1_tiny", model=PRESETS["gpt1_tiny"], corpus=CorpusConfig(vocab_size=512), train=_TINY
    ),
}
