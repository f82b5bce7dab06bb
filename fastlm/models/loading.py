"""Models by their configuration: which class a configuration is of, building and loading."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from fastlm.models import files
from fastlm.models.base import Model
from fastlm.models.bert import BERT
from fastlm.models.configs import ModelConfig
from fastlm.models.gpt1 import GPT1
from fastlm.nn.heads import Head

_MODELS: dict[type[ModelConfig], type[Model]] = {model.config_class: model for model in (GPT1, BERT)}


def build(config: ModelConfig, heads: Mapping[str, Head] | None = None, *, backend: str = "auto") -> Model:
    """A freshly initialised model of this configuration; `heads` None: those of its paper's pretraining."""
    if type(config) not in _MODELS:
        raise TypeError(f"config must be a GPT1Config or a BERTConfig, got {type(config).__name__}")
    return _MODELS[type(config)](config, heads, backend=backend)


def load(folder: str | Path, heads: Mapping[str, Head] | None = None, *, backend: str = "auto") -> Model:
    """The model, of whatever class, that `save` wrote into this folder; `heads` as in `Model.load`.

    Raises FileNotFoundError, or ValueError for a truncated or foreign file; pickles are never loaded.
    """
    model_type = files.read_config(folder).get("model_type")
    for config_class, model in _MODELS.items():
        if config_class.model_type == model_type:
            return model.load(folder, heads, backend=backend)
    known = " or ".join(repr(config_class.model_type) for config_class in _MODELS)
    raise ValueError(f"{Path(folder) / files.CONFIG}: model_type must be {known}, got {model_type!r}")


def parameter_count(config: ModelConfig) -> int:
    """Numbers that training adapts, with the heads of the paper's pretraining; a tied weight counts once."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(config).parameters())
