"""Modules that call the ops: namesakes of torch.nn's, fused layers, the blocks of the models, and heads."""

from fastlm.nn.blocks import PostLNBlock
from fastlm.nn.gelu import GELU, BiasGELU
from fastlm.nn.heads import CausalLMHead, Head, MaskedLMHead, NextSentenceHead
from fastlm.nn.layer_norm import AddLayerNorm, GELULayerNorm, LayerNorm, LayerNormGELU
from fastlm.nn.layers import MLP, Dropout, EmbeddingLayerNorm, SelfAttention
from fastlm.nn.layout import Layout
from fastlm.nn.loss import CrossEntropyLoss, LinearCrossEntropy, LinearCrossEntropyLoss
from fastlm.nn.multihead_attention import MultiheadAttention
from fastlm.nn.task_heads import (
    ChoiceHead,
    ClassificationHead,
    RegressionHead,
    SequenceLMHead,
    SpanHead,
    TaggingHead,
)
from fastlm.nn.transformer_encoder import TransformerEncoder, TransformerEncoderLayer

__all__ = [
    "GELU",
    "MLP",
    "AddLayerNorm",
    "BiasGELU",
    "CausalLMHead",
    "ChoiceHead",
    "ClassificationHead",
    "CrossEntropyLoss",
    "Dropout",
    "EmbeddingLayerNorm",
    "GELULayerNorm",
    "Head",
    "LayerNorm",
    "LayerNormGELU",
    "Layout",
    "LinearCrossEntropy",
    "LinearCrossEntropyLoss",
    "MaskedLMHead",
    "MultiheadAttention",
    "NextSentenceHead",
    "PostLNBlock",
    "RegressionHead",
    "SelfAttention",
    "SequenceLMHead",
    "SpanHead",
    "TaggingHead",
    "TransformerEncoder",
    "TransformerEncoderLayer",
]
