"""The models: GPT-1 and BERT, one file each."""

from __future__ import annotations

from pathlib import Path

import torch

from fastlm.models import bert, files, gpt1
from fastlm.models.bert import BERT, BERTConfig, BERTOutput
from fastlm.models.gpt1 import GPT1, GPT1Config

__all__ = [
    "BERT",
    "GPT1",
    "PRESETS",
    "BERTConfig",
    "BERTOutput",
    "GPT1Config",
    "build",
    "load",
    "parameter_count",
]

PRESETS: dict[str, GPT1Config | BERTConfig] = gpt1.PRESETS | bert.PRESETS
_MODELS = {model.config_class: model for model in (GPT1, BERT)}


def build(config: GPT1Config | BERTConfig, backend: str = "auto") -> GPT1 | BERT:
    """A freshly initialised model of this configuration."""
    if type(config) not in _MODELS:
        raise TypeError(f"config must be a GPT1Config or a BERTConfig, got {type(config).__name__}")
    return _MODELS[type(config)](config, backend)


def load(folder: str | Path, backend: str = "auto") -> GPT1 | BERT:
    """The model, of either class, that `save` wrote into this folder.

    Raises FileNotFoundError, or ValueError for a truncated or foreign file; pickles are never loaded.
    """
    model_type = files.read_config(folder).get("model_type")
    for config_class, model in _MODELS.items():
        if config_class.model_type == model_type:
            return model.load(folder, backend)
    known = " or ".join(repr(config_class.model_type) for config_class in _MODELS)
    raise ValueError(f"{Path(folder) / files.CONFIG}: model_type must be {known}, got {model_type!r}")


def parameter_count(config: GPT1Config | BERTConfig) -> int:
    """Numbers that training adapts; a tied weight counts once."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(config).parameters())
