"""The models, one per file: a trunk with heads. Their configurations and sizes import no torch."""

from typing import TYPE_CHECKING

from fastlm._lazy import attach

if TYPE_CHECKING:
    from fastlm.models import files as files
    from fastlm.models.base import Model, ModelOutput
    from fastlm.models.bert import BERT
    from fastlm.models.configs import PRESETS, BERTConfig, GPT1Config, ModelConfig
    from fastlm.models.gpt1 import GPT1
    from fastlm.models.loading import (
        build,
        from_weights,
        load,
        parameter_count,
        pretraining_heads,
        read_config,
    )
    from fastlm.models.vocabulary import grow_vocabulary

__all__ = [
    "BERT",
    "GPT1",
    "PRESETS",
    "BERTConfig",
    "GPT1Config",
    "Model",
    "ModelConfig",
    "ModelOutput",
    "build",
    "from_weights",
    "grow_vocabulary",
    "load",
    "parameter_count",
    "pretraining_heads",
    "read_config",
]

_NAMES = {
    "base": ("Model", "ModelOutput"),
    "bert": ("BERT",),
    "configs": ("PRESETS", "BERTConfig", "GPT1Config", "ModelConfig"),
    "gpt1": ("GPT1",),
    "loading": ("build", "from_weights", "load", "parameter_count", "pretraining_heads", "read_config"),
    "vocabulary": ("grow_vocabulary",),
}
__getattr__, __dir__ = attach(__name__, _NAMES, submodules=("files",))
