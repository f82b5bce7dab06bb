"""The ops: one file per op, each with its public function, its SPEC, its schema and its derivative.

To add an op to fastlm, add its function and its SPEC here: `fastlm info`, the README's table, the tests and the
benchmarks loop over SPECS.
"""

from fastlm.backends import Spec
from fastlm.ops.adamw import SPEC as _ADAMW
from fastlm.ops.adamw import adamw, gradient_squares
from fastlm.ops.add_layer_norm import SPEC as _ADD_LAYER_NORM
from fastlm.ops.add_layer_norm import add_layer_norm
from fastlm.ops.attention import PACKED as _ATTENTION_PACKED
from fastlm.ops.attention import SPEC as _ATTENTION
from fastlm.ops.attention import attention, attention_packed
from fastlm.ops.bias_gelu import SPEC as _BIAS_GELU
from fastlm.ops.bias_gelu import bias_gelu
from fastlm.ops.cross_entropy import SPEC as _CROSS_ENTROPY
from fastlm.ops.cross_entropy import cross_entropy
from fastlm.ops.embedding_layer_norm import SPEC as _EMBEDDING_LAYER_NORM
from fastlm.ops.embedding_layer_norm import embedding_layer_norm
from fastlm.ops.gelu_layer_norm import SPEC as _GELU_LAYER_NORM
from fastlm.ops.gelu_layer_norm import gelu_layer_norm
from fastlm.ops.layer_norm import SPEC as _LAYER_NORM
from fastlm.ops.layer_norm import layer_norm
from fastlm.ops.layer_norm_gelu import SPEC as _LAYER_NORM_GELU
from fastlm.ops.layer_norm_gelu import layer_norm_gelu
from fastlm.ops.linear_cross_entropy import SPEC as _LINEAR_CROSS_ENTROPY
from fastlm.ops.linear_cross_entropy import linear_cross_entropy

__all__ = [
    "SPECS",
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
]

SPECS: dict[str, Spec] = {
    spec.op: spec
    for spec in (
        _ATTENTION,
        _ATTENTION_PACKED,
        _LAYER_NORM,
        _ADD_LAYER_NORM,
        _GELU_LAYER_NORM,
        _LAYER_NORM_GELU,
        _BIAS_GELU,
        _EMBEDDING_LAYER_NORM,
        _LINEAR_CROSS_ENTROPY,
        _CROSS_ENTROPY,
        _ADAMW,
    )
}
