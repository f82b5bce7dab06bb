"""Modules that call the ops: drop-in layers, the blocks of the models, and heads."""

from fastlm.nn.blocks import PostLNBlock
from fastlm.nn.heads import CausalLMHead, Head, MaskedLMHead, NextSentenceHead
from fastlm.nn.layers import (
    MLP,
    AddLayerNorm,
    BiasGELU,
    EmbeddingLayerNorm,
    GELULayerNorm,
    LayerNorm,
    LayerNormGELU,
    LinearCrossEntropy,
    SelfAttention,
)

__all__ = [
    "MLP",
    "AddLayerNorm",
    "BiasGELU",
    "CausalLMHead",
    "EmbeddingLayerNorm",
    "GELULayerNorm",
    "Head",
    "LayerNorm",
    "LayerNormGELU",
    "LinearCrossEntropy",
    "MaskedLMHead",
    "NextSentenceHead",
    "PostLNBlock",
    "SelfAttention",
]
