"""GPT-1 of transformers (openai-gpt): what is replaced, class by class.

It does not use transformers' attention implementations, so its attention module itself is replaced.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from transformers.models.openai import modeling_openai as openai

from fastlm import ops
from fastlm.patching import parts
from fastlm.patching.options import PatchOptions
from fastlm.patching.swap import Swapped
from fastlm.patching.torch_modules import reason_against_head_dim
from fastlm.patching.transformers.attention import rows_of
from fastlm.patching.transformers.layers import MLP, add_norm
from fastlm.patching.transformers.losses import CausalLoss

_ROWS = "_fastlm_rows"  # an attribute of a mask, which all blocks get: its rows, computed once


class Attention(Swapped):
    """Computes Attention. Wanted weights, and masks with holes on a CPU, take the model's own way."""

    switch = "attention"

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        return reason_against_head_dim(module.split_size // module.n_head) or parts.reason_against_dropout(
            module.attn_dropout
        )

    def heads(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """Returns the heads' outputs (B, S, E) for x (B, S, E) and the rows (2, B) of the mask."""
        qkv = self.c_attn(x).unflatten(-1, (3, self.n_head, -1))
        return ops.attention_packed(
            qkv,
            causal=True,
            scale=1 / math.sqrt(qkv.shape[-1]) if self.scale else 1.0,
            **({} if rows is None else {"starts": rows[0], "lengths": rows[1]}),
            **parts.dropout_arguments(self.attn_dropout, x.device),
            backend=self.fastlm_options.backend,
        ).flatten(-2)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None, output_attentions: bool = False) -> list[Tensor]:
        served, rows = find_rows(attention_mask)
        if output_attentions or not served:
            return super().forward(x, attention_mask, output_attentions)
        return [self.resid_dropout(self.c_proj(self.heads(x, rows)))]


def find_rows(mask: Tensor | None) -> tuple[bool, Tensor | None]:
    """Returns whether the kernels serve a mask that is added to scores, (B, 1, 1, S), and its rows (2, B)."""
    if mask is None:
        return True, None
    if mask.ndim != 4 or mask.shape[1:3] != (1, 1):
        return False, None
    if not hasattr(mask, _ROWS):
        setattr(mask, _ROWS, rows_of(mask[:, 0, 0] == 0))
    rows = getattr(mask, _ROWS)
    return rows is not None, rows


class Block(Swapped):
    """Computes Block, each layer norm with the bias, the dropout and the residual before it."""

    switch = "layer_norm"
    absorbs = ("ln_1", "ln_2")

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        norms = parts.reason_against_norm(module.ln_1) or parts.reason_against_norm(module.ln_2)
        dropouts = (module.attn.resid_dropout, module.mlp.dropout)
        return norms or next(filter(None, map(parts.reason_against_dropout, dropouts)), None)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None, output_attentions: bool = False) -> list[Tensor]:
        attn, mlp = self.attn, self.mlp
        served, rows = find_rows(attention_mask)
        if served and not output_attentions and isinstance(attn, Attention) and parts.is_plain(attn, type(attn)):
            weights, dropout = [], attn.resid_dropout
            a, bias = parts.project(attn.c_proj, attn.heads(x, rows))
        else:
            (a, *weights), bias, dropout = attn(x, attention_mask, output_attentions), None, None
        n = add_norm(self, self.ln_1, a, x, bias, dropout)
        if isinstance(mlp, MLP) and parts.is_plain(mlp, type(mlp)):
            (m, bias), dropout = parts.project(mlp.c_proj, mlp.up(n)), mlp.dropout
        else:
            m, bias, dropout = mlp(n), None, None
        return [add_norm(self, self.ln_2, m, n, bias, dropout), *weights]


class LMHeadModel(CausalLoss):
    """Computes OpenAIGPTLMHeadModel's loss."""

    trunk, decoder, result = "transformer", "lm_head", openai.CausalLMOutput


BASE = openai.OpenAIGPTPreTrainedModel
REPLACEMENTS = {
    openai.Attention: Attention,
    openai.MLP: MLP,
    openai.Block: Block,
    openai.OpenAIGPTLMHeadModel: LMHeadModel,
}
