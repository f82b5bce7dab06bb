"""Replacements for torch.nn's modules, in any model: they compute as their namesakes in fastlm.nn."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastlm import nn as ours
from fastlm.ops.attention import SPEC
from fastlm.patching.options import PatchOptions
from fastlm.patching.swap import Namesake

MAX_HEAD_DIM = SPEC.limits["triton"].max_width  # CUDA's is the same


def reason_against_head_dim(size: int) -> str | None:
    """Returns why the kernels cannot serve a head_dim, or None."""
    return f"its head_dim is {size}, and the kernels take up to {MAX_HEAD_DIM}" if size > MAX_HEAD_DIM else None


class LayerNorm(Namesake):
    """Computes torch.nn.LayerNorm."""

    switch, namesake = "layer_norm", ours.LayerNorm


class GELU(Namesake):
    """Computes torch.nn.GELU."""

    switch, namesake = "gelu", ours.GELU


class Whole(Namesake):
    """Is the base of the replacements of modules with several methods, which a subclass may have changed."""

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        torchs = cls.namesake.__mro__[1]
        return None if type(module) is torchs else f"it is a subclass of torch.nn.{torchs.__name__}"


class MultiheadAttention(Whole):
    """Computes torch.nn.MultiheadAttention: self-attention without weights, which need_weights=False asks for."""

    switch, namesake = "attention", ours.MultiheadAttention

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        reason = super().reason_against(module, options) or reason_against_head_dim(module.head_dim)
        return reason or ours.MultiheadAttention._reason_of_parameters(module)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        return super().forward(query, key, value, key_padding_mask, need_weights, *args, **kwargs)


class CrossEntropyLoss(Namesake):
    """Computes torch.nn.CrossEntropyLoss."""

    switch, namesake = "loss", ours.CrossEntropyLoss


class TransformerEncoderLayer(Whole):
    """Computes torch.nn.TransformerEncoderLayer, each layer norm with the bias, the dropout and the sum before it."""

    switch, namesake = "layer_norm", ours.TransformerEncoderLayer


class TransformerEncoder(Whole):
    """Computes torch.nn.TransformerEncoder, whose layers get the rows of a padding mask instead of the mask."""

    switch, namesake = "attention", ours.TransformerEncoder


REPLACEMENTS = {mixin.namesake.__mro__[1]: mixin for mixin in (
    LayerNorm, GELU, CrossEntropyLoss, MultiheadAttention, TransformerEncoderLayer, TransformerEncoder,
)}  # fmt: skip
