"""Replacements for the layers that BERT and its relatives in transformers have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlm import ops
from fastlm.patching import parts
from fastlm.patching.options import PatchOptions
from fastlm.patching.swap import Swapped


class AddNorm(Swapped):
    """Computes LayerNorm(input + dropout(dense(x))): BertSelfOutput and BertOutput."""

    switch = "layer_norm"
    absorbs = ("LayerNorm",)

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        return parts.reason_against_norm(module.LayerNorm) or parts.reason_against_dropout(module.dropout)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        x, bias = parts.project(self.dense, hidden_states)
        return add_norm(self, self.LayerNorm, x, input_tensor, bias, self.dropout)


def add_norm(
    module: Swapped, norm: nn.LayerNorm, x: Tensor, residual: Tensor, bias: Tensor | None, dropout: nn.Dropout | None
) -> Tensor:
    """Returns norm(residual + dropout(x + bias))."""
    if x.dtype != residual.dtype and not torch.is_autocast_enabled(x.device.type):  # under autocast the op casts both
        x, residual = (t.to(torch.promote_types(x.dtype, residual.dtype)) for t in (x, residual))
    drop = {} if dropout is None else parts.dropout_arguments(dropout, x.device)
    return ops.add_layer_norm(
        x,
        residual,
        norm.weight,
        norm.bias,
        bias=bias,
        eps=norm.eps,
        backend=module.fastlm_options.backend,
        **drop,
    )


class Intermediate(Swapped):
    """Computes GELU(dense(x)): BertIntermediate."""

    switch = "gelu"

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        return parts.reason_against_gelu(module.intermediate_act_fn)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return linear_gelu(self, self.dense, self.intermediate_act_fn, hidden_states)


def linear_gelu(module: Swapped, linear: nn.Module, activation: Any, x: Tensor) -> Tensor:
    """Returns GELU(linear(x))."""
    y, bias = parts.project(linear, x)
    return ops.bias_gelu(y, bias, approximate=parts.gelu_form(activation), backend=module.fastlm_options.backend)


class MLP(Swapped):
    """Computes dropout(c_proj(GELU(c_fc(x)))): GPT-1's and GPT-2's MLP."""

    switch = "gelu"

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        return parts.reason_against_gelu(module.act)

    def up(self, x: Tensor) -> Tensor:
        """Returns GELU(c_fc(x))."""
        return linear_gelu(self, self.c_fc, self.act, x)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.up(x)))


class Transform(Swapped):
    """Computes LayerNorm(GELU(dense(x))), the masked-LM transform: BertPredictionHeadTransform.

    act, norm: the names of the activation and of the layer norm.
    """

    switch = "gelu"
    absorbs = ("LayerNorm",)
    act, norm = "transform_act_fn", "LayerNorm"

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        activation = getattr(module, cls.act)
        return parts.reason_against_gelu(activation) or parts.reason_against_norm(getattr(module, cls.norm))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return transform(self, self.dense, getattr(self, self.act), getattr(self, self.norm), hidden_states)


def transform(module: Swapped, linear: nn.Module, activation: Any, norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Returns norm(GELU(linear(x)))."""
    y, bias = parts.project(linear, x)
    options = {"approximate": parts.gelu_form(activation), "backend": module.fastlm_options.backend}
    return ops.gelu_layer_norm(y, norm.weight, norm.bias, bias=bias, eps=norm.eps, **options)


class Embeddings(Swapped):
    """Computes dropout(LayerNorm(word + position + segment)): BertEmbeddings, and those without segments.

    Given embeddings (`inputs_embeds`) take the model's own way.
    """

    switch = "embeddings"
    absorbs = ("LayerNorm",)

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        tables = (module.word_embeddings, module.position_embeddings, getattr(module, "token_type_embeddings", None))
        for table in filter(None, tables):
            if not parts.is_plain(table, nn.Embedding):
                return f"an embedding is a {type(table).__name__}, or has hooks"
            if table.max_norm is not None or table.scale_grad_by_freq or table.sparse:
                return "an embedding has max_norm, scale_grad_by_freq or sparse gradients"
        return parts.reason_against_norm(module.LayerNorm) or parts.reason_against_dropout(module.dropout)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        given = dict(zip(self.argument_names, args, strict=False)) | kwargs
        tokens, segments, positions = map(given.get, ("input_ids", "token_type_ids", "position_ids"))
        if tokens is None or given.get("inputs_embeds") is not None:
            return super().forward(*args, **kwargs)
        cached = given.get("cache_length") or given.get("past_key_values_length") or 0
        positions = self.positions(tokens, positions, cached)
        segment = getattr(self, "token_type_embeddings", None)
        third = {} if segment is None else {"segment": segment.weight, "segments": _shaped(segments, tokens)}
        return ops.embedding_layer_norm(
            tokens,
            self.word_embeddings.weight,
            position=self.position_embeddings.weight,
            position_ids=positions,
            **third,
            padding_idx=self.word_embeddings.padding_idx,
            position_padding_idx=self.position_embeddings.padding_idx,
            gamma=self.LayerNorm.weight,
            beta=self.LayerNorm.bias,
            eps=self.LayerNorm.eps,
            backend=self.fastlm_options.backend,
            **parts.dropout_arguments(self.dropout, tokens.device),
        )

    def positions(self, tokens: Tensor, positions: Tensor | None, cached: int) -> Tensor | None:
        """Returns the positions (B, S) of tokens, or None for 0 ... S - 1. `cached`: tokens before them."""
        if positions is None and cached:
            positions = self.position_ids[:, cached : cached + tokens.shape[1]]
        return None if positions is None else _shaped(positions, tokens)


def _shaped(ids: Tensor | None, tokens: Tensor) -> Tensor:
    """Returns ids as int64 of the shape of tokens; without ids zeros."""
    return torch.zeros_like(tokens) if ids is None else ids.to(torch.int64).expand(tokens.shape)
