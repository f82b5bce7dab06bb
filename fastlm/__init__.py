"""fastlm: fused kernels, models and recipes for pretraining transformers of the GPT-1 and BERT family."""

from fastlm.backends import get_backend, set_backend, use_backend
from fastlm.dropout import draw_seeds
from fastlm.ops import (
    adamw,
    add_layer_norm,
    attention,
    attention_packed,
    bias_gelu,
    embedding_layer_norm,
    gelu_layer_norm,
    gradient_squares,
    layer_norm,
    layer_norm_gelu,
    linear_cross_entropy,
)

__version__ = "0.1.0"

__all__ = [
    "adamw",
    "add_layer_norm",
    "attention",
    "attention_packed",
    "bias_gelu",
    "draw_seeds",
    "embedding_layer_norm",
    "gelu_layer_norm",
    "get_backend",
    "gradient_squares",
    "layer_norm",
    "layer_norm_gelu",
    "linear_cross_entropy",
    "set_backend",
    "use_backend",
]
