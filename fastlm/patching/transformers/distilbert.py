"""DistilBERT of transformers: what is replaced, class by class."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.models.distilbert import modeling_distilbert as distilbert

from fastlm.patching import parts
from fastlm.patching.options import PatchOptions
from fastlm.patching.swap import Swapped
from fastlm.patching.transformers.attention import SelfAttention
from fastlm.patching.transformers.layers import Embeddings, add_norm, linear_gelu, transform
from fastlm.patching.transformers.losses import MaskedLoss


class FeedForward(Swapped):
    """Computes FFN: dropout(lin2(GELU(lin1(x)))), and for `Block` the same without the last bias and the dropout."""

    switch = "gelu"

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        return parts.reason_against_gelu(module.activation)

    def ff_chunk(self, input: Tensor) -> Tensor:
        return self.dropout(self.lin2(linear_gelu(self, self.lin1, self.activation, input)))


class Block(Swapped):
    """Computes TransformerBlock, each layer norm with the sum before it."""

    switch = "layer_norm"
    absorbs = ("sa_layer_norm", "output_layer_norm")

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        for norm in (module.sa_layer_norm, module.output_layer_norm):
            reason = parts.reason_against_norm(norm)
            if reason:
                return reason
        return parts.reason_against_dropout(module.ffn.dropout)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        x = self.attention(hidden_states, attention_mask=attention_mask, **kwargs)[0]
        h = add_norm(self, self.sa_layer_norm, x, hidden_states, None, None)
        m, bias, dropout = self._feed_forward(h)
        return add_norm(self, self.output_layer_norm, m, h, bias, dropout)

    def _feed_forward(self, h: Tensor) -> tuple[Tensor, Tensor | None, nn.Dropout | None]:
        """Returns the feed-forward layer's output, with the bias and the dropout that are not in it yet."""
        ffn = self.ffn
        if not isinstance(ffn, FeedForward) or not parts.is_plain(ffn, type(ffn)) or ffn.chunk_size_feed_forward:
            return ffn(h), None, None
        return *parts.project(ffn.lin2, linear_gelu(ffn, ffn.lin1, ffn.activation, h)), ffn.dropout


class MaskedLM(MaskedLoss):
    """Computes DistilBertForMaskedLM's loss. The transform is part of the model itself."""

    trunk, decoder = "distilbert", "vocab_projector"
    absorbs = ("mlm_loss_fct",)

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        loss = getattr(module, "mlm_loss_fct", None)  # set at the end of the constructor
        if loss is not None and getattr(loss, "original", type(loss)) is not nn.CrossEntropyLoss:
            return f"its loss is a {type(loss).__name__}"
        return super().reason_against(module, options)

    def features(self, hidden: Tensor) -> Tensor:
        norm, linear = self.vocab_layer_norm, self.vocab_transform
        if parts.reason_against_gelu(self.activation) or parts.reason_against_norm(norm):
            return norm(self.activation(linear(hidden)))
        return transform(self, linear, self.activation, norm, hidden)


BASE = distilbert.DistilBertPreTrainedModel
REPLACEMENTS = {
    distilbert.DistilBertSelfAttention: SelfAttention,
    distilbert.Embeddings: Embeddings,
    distilbert.FFN: FeedForward,
    distilbert.TransformerBlock: Block,
    distilbert.DistilBertForMaskedLM: MaskedLM,
}
