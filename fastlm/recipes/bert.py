"""BERT's pretraining: Devlin et al. 2019, appendix A.2. The small ones suit runs of minutes."""

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
    from fastlm.tasks.masked_lm import MaskedLM

    return MaskedLM(recipe.model, recipe.corpus)


_BASE = Recipe(
    name="bert_base",
    make_task=_task,
    model=PRESETS["bert_base"],
    corpus=CorpusConfig(vocab_size=30522),
    train=TrainConfig(
        steps=1_000_000,
        phases=((0.9, 128), (0.1, 512)),
        batch_size=256,
        accumulation=4,
        learning_rate=1e-4,
        warmup=10_000,
        decay="linear",
        epsilon=1e-6,
        bias_correction=False,
    ),
)
_SMALL = replace(
    _BASE.train.with_length(minutes=3.0),
    phases=((1.0, 64),),
    batch_size=16,
    accumulation=1,
    learning_rate=5e-4,
    warmup=100,
    beta2=0.99,
    validate_every=200,
    checkpoint_every=1_000_000,
    checkpoint_seconds=30.0,
)
# With a rate of 2e-3 and 20 updates of warm-up, the loss was still the unigram model's after 4,400 updates. With these
# values it was 0.48 nats below after 2,500.
_MINI = replace(_SMALL, phases=((1.0, 64),), batch_size=8, learning_rate=1e-3, warmup=100)
_TINY = replace(
    _BASE.train.with_length(steps=20),
    phases=((1.0, 32),),
    batch_size=4,
    accumulation=1,
    learning_rate=1e-3,
    warmup=2,
    validate_every=10,
    validation_batches=2,
)

RECIPES = {
    "bert_base": _BASE,
    "bert_large": replace(
        _BASE, name="bert_large", model=PRESETS["bert_large"], train=replace(_BASE.train, accumulation=8)
    ),
    "bert_small": replace(
        _BASE, name="bert_small", model=PRESETS["bert_small"], corpus=CorpusConfig(vocab_size=4096), train=_SMALL
    ).with_options({"dropout": 0.0}),
    "bert_mini": replace(
        _BASE, name="bert_mini", model=PRESETS["bert_mini"], corpus=CorpusConfig(vocab_size=1024), train=_MINI
    ).with_options({"dropout": 0.0}),
    "bert_tiny": replace(
        _BASE, name="bert_tiny", model=PRESETS["bert_tiny"], corpus=CorpusConfig(vocab_size=512), train=_TINY
    ),
}
