"""The ops: one file an op, each with its public function, schema, fake and derivative."""

from fastlm.ops.adamw import adamw, gradient_squares
from fastlm.ops.add_layer_norm import add_layer_norm
from fastlm.ops.attention import attention, attention_packed
from fastlm.ops.bias_gelu import bias_gelu
from fastlm.ops.embedding_layer_norm import embedding_layer_norm
from fastlm.ops.gelu_layer_norm import gelu_layer_norm
from fastlm.ops.layer_norm import layer_norm
from fastlm.ops.layer_norm_gelu import layer_norm_gelu
from fastlm.ops.linear_cross_entropy import linear_cross_entropy

__all__ = [
    "adamw",
    "add_layer_norm",
    "attention",
    "attention_packed",
    "bias_gelu",
    "embedding_layer_norm",
    "gelu_layer_norm",
    "gradient_squares",
    "layer_norm",
    "layer_norm_gelu",
    "linear_cross_entropy",
]
