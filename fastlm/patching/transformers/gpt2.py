"""GPT-2 of transformers: what is replaced, class by class."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.models.gpt2 import modeling_gpt2 as gpt2

from fastlm import ops
from fastlm.patching import parts
from fastlm.patching.options import PatchOptions
from fastlm.patching.swap import Swapped
from fastlm.patching.transformers.attention import SelfAttention
from fastlm.patching.transformers.layers import MLP
from fastlm.patching.transformers.losses import CausalLoss


class Block(Swapped):
    """Computes GPT2Block, the second layer norm with the residual sum before it. Cross-attention takes the old way."""

    switch = "layer_norm"
    absorbs = ("ln_1", "ln_2")

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        return parts.reason_against_norm(module.ln_1) or parts.reason_against_norm(module.ln_2)

    def forward(
        self,
        hidden_states: Tensor,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if encoder_hidden_states is not None:
            return super().forward(hidden_states, cache, attention_mask, encoder_hidden_states, **kwargs)
        backend, first, second = self.fastlm_options.backend, self.ln_1, self.ln_2
        y = ops.layer_norm(hidden_states, first.weight, first.bias, eps=first.eps, backend=backend)
        kwargs.pop("encoder_attention_mask", None)
        x = self.attn(y, cache, attention_mask=attention_mask, **kwargs)[0]
        if x.dtype != hidden_states.dtype:  # under autocast
            x = x.to(hidden_states.dtype)
        y, h = ops.add_layer_norm(
            x, hidden_states, second.weight, second.bias, eps=second.eps, return_sum=True, backend=backend
        )
        return h + self.mlp(y)


class LMHeadModel(CausalLoss):
    """Computes GPT2LMHeadModel's loss."""

    trunk, decoder = "transformer", "lm_head"


BASE = gpt2.GPT2PreTrainedModel
REPLACEMENTS = {
    gpt2.GPT2Attention: SelfAttention,
    gpt2.GPT2MLP: MLP,
    gpt2.GPT2Block: Block,
    gpt2.GPT2LMHeadModel: LMHeadModel,
}
