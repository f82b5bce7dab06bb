"""Modules that call the ops: drop-in layers, the blocks of the models, and heads."""

from fastlm.nn.blocks import PostLNBlock
from fastlm.nn.heads import CausalLMHead, Head, MaskedLMHead, NextSentenceHead
from fastlm.nn.layers import (
    MLP,
    AddLayerNorm,
    BiasGELU,
    Dropout,
    EmbeddingLayerNorm,
    GELULayerNorm,
    LayerNorm,
    LayerNormGELU,
    LinearCrossEntropy,
    SelfAttention,
)
from fastlm.nn.layout import Layout
from fastlm.nn.task_heads import (
    ChoiceHead,
    ClassificationHead,
    RegressionHead,
    SequenceLMHead,
    SpanHead,
    TaggingHead,
)

__all__ = [
    "MLP",
    "AddLayerNorm",
    "BiasGELU",
    "CausalLMHead",
    "ChoiceHead",
    "ClassificationHead",
    "Dropout",
    "EmbeddingLayerNorm",
    "GELULayerNorm",
    "Head",
    "LayerNorm",
    "LayerNormGELU",
    "Layout",
    "LinearCrossEntropy",
    "MaskedLMHead",
    "NextSentenceHead",
    "PostLNBlock",
    "RegressionHead",
    "SelfAttention",
    "SequenceLMHead",
    "SpanHead",
    "TaggingHead",
]
