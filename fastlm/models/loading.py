"""Builds and loads a model of the class that a configuration belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastlm.models import files
from fastlm.models.base import Model
from fastlm.models.bert import BERT
from fastlm.models.configs import ModelConfig
from fastlm.models.gpt1 import GPT1
from fastlm.nn.heads import Head

_MODELS: dict[type[ModelConfig], type[Model]] = {model.config_class: model for model in (GPT1, BERT)}


def build(config: ModelConfig, heads: Mapping[str, Head] | None = None, *, backend: str = "auto") -> Model:
    """Builds a freshly initialised model; heads=None gives the heads that its paper pretrains it with."""
    if type(config) not in _MODELS:
        raise TypeError(f"config must be a GPT1Config or a BERTConfig, got {type(config).__name__}")
    return _MODELS[type(config)](config, heads, backend=backend)


def load(folder: str | Path, heads: Mapping[str, Head] | None = None, *, backend: str = "auto") -> Model:
    """Loads a model of any class from a folder that `save` wrote; `heads` as in `Model.load`. Pickles are never loaded.

    Raises FileNotFoundError, or ValueError for a truncated or foreign file.
    """
    config, weights = read_config(folder), files.read_weights(folder)
    return from_weights(config, weights, heads, backend=backend, source=str(Path(folder) / files.WEIGHTS))


def read_config(folder: str | Path) -> ModelConfig:
    """Returns the configuration of a model of any class. Raises FileNotFoundError or ValueError, naming the file."""
    model_type = files.read_config(folder).get("model_type")
    for config_class, model in _MODELS.items():
        if config_class.model_type == model_type:
            return model.read_config(folder)
    known = " or ".join(repr(config_class.model_type) for config_class in _MODELS)
    inside = Path(folder) / "model"
    hint = f"; this is a run folder, whose model is in {inside}" if inside.is_dir() else ""
    raise ValueError(f"{Path(folder) / files.CONFIG}: model_type must be {known}, got {model_type!r}{hint}")


def from_weights(
    config: ModelConfig,
    weights: dict[str, Tensor],
    heads: Mapping[str, Head] | None = None,
    *,
    backend: str = "auto",
    source: str = "weights",
) -> Model:
    """Builds a model of the class that a configuration belongs to, as its `Model.from_weights`."""
    return _MODELS[type(config)].from_weights(config, weights, heads, backend=backend, source=source)


def pretraining_heads(config: ModelConfig, *, backend: str = "auto") -> dict[str, Head]:
    """Returns fresh heads by name: those that the paper pretrains a model with. The model initialises them."""
    with torch.device("meta"):
        model = build(config, {}, backend=backend)
    return model.pretraining_heads()


def parameter_count(config: ModelConfig) -> int:
    """Counts the trained parameters, the pretraining heads included; a tied weight counts once."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(config).parameters())
