"""fastlm: fused kernels, models and recipes for pretraining transformers of the GPT-1 and BERT family."""

from typing import TYPE_CHECKING

from fastlm._lazy import attach

if TYPE_CHECKING:
    from fastlm import backends as backends
    from fastlm import data as data
    from fastlm import models as models
    from fastlm import nn as nn
    from fastlm import ops as ops
    from fastlm import reference as reference
    from fastlm.backends import get_backend, set_backend, use_backend
    from fastlm.dropout import draw_seeds
    from fastlm.ops import (
        adamw,
        add_layer_norm,
        attention,
        attention_packed,
        bias_gelu,
        cross_entropy,
        embedding_layer_norm,
        gelu_layer_norm,
        gradient_squares,
        layer_norm,
        layer_norm_gelu,
        linear_cross_entropy,
    )
    from fastlm.patching import patch, unpatch

__version__ = "0.1.0"

__all__ = [
    "adamw",
    "add_layer_norm",
    "attention",
    "attention_packed",
    "bias_gelu",
    "cross_entropy",
    "draw_seeds",
    "embedding_layer_norm",
    "gelu_layer_norm",
    "get_backend",
    "gradient_squares",
    "layer_norm",
    "layer_norm_gelu",
    "linear_cross_entropy",
    "patch",
    "set_backend",
    "unpatch",
    "use_backend",
]

# torch is imported when one of these names is first used, so that `import fastlm` takes milliseconds.
_NAMES = {
    "backends": ("get_backend", "set_backend", "use_backend"),
    "dropout": ("draw_seeds",),
    "ops": (
        "adamw",
        "add_layer_norm",
        "attention",
        "attention_packed",
        "bias_gelu",
        "cross_entropy",
        "embedding_layer_norm",
        "gelu_layer_norm",
        "gradient_squares",
        "layer_norm",
        "layer_norm_gelu",
        "linear_cross_entropy",
    ),
    "patching": ("patch", "unpatch"),
}
__getattr__, __dir__ = attach(__name__, _NAMES, submodules=("backends", "data", "models", "nn", "ops", "reference"))
