"""ALBERT of transformers: what is replaced, class by class."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.albert import modeling_albert as albert
from transformers.utils import ModelOutput

from fastlm.patching import parts
from fastlm.patching.options import PatchOptions
from fastlm.patching.swap import Swapped
from fastlm.patching.transformers.attention import NAME, SelfAttention, attention_forward
from fastlm.patching.transformers.layers import Embeddings, Transform, add_norm, linear_gelu
from fastlm.patching.transformers.losses import MaskedLoss


class Attention(SelfAttention):
    """Computes AlbertAttention, with the layer norm behind it."""

    absorbs = ("LayerNorm",)

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        return (
            super().reason_against(module, options)
            or parts.reason_against_norm(module.LayerNorm)
            or parts.reason_against_dropout(module.output_dropout)
        )

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        if self.config._attn_implementation != NAME or not self.fastlm_options.layer_norm:
            return super().forward(hidden_states, attention_mask, **kwargs)
        shape = (*hidden_states.shape[:-1], -1, self.attention_head_size)
        q, k, v = (linear(hidden_states).view(shape).transpose(1, 2) for linear in (self.query, self.key, self.value))
        p = self.attention_dropout.p if self.training else 0.0
        o, weights = attention_forward(self, q, k, v, attention_mask, dropout=p, scaling=self.scaling, **kwargs)
        x, bias = parts.project(self.dense, o.flatten(-2))
        return add_norm(self, self.LayerNorm, x, hidden_states, bias, self.output_dropout), weights


class Layer(Swapped):
    """Computes AlbertLayer: the feed-forward layer, with the sum and the layer norm behind it."""

    switch = "layer_norm"
    absorbs = ("full_layer_layer_norm",)

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        return parts.reason_against_norm(module.full_layer_layer_norm)

    def ff_chunk(self, attention_output: Tensor) -> Tensor:
        return self.ffn_output(self._up(attention_output))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        if self.chunk_size_feed_forward:
            return super().forward(hidden_states, attention_mask, **kwargs)
        h = self.attention(hidden_states, attention_mask, **kwargs)[0]
        x, bias = parts.project(self.ffn_output, self._up(h))
        return add_norm(self, self.full_layer_layer_norm, x, h, bias, None)

    def _up(self, x: Tensor) -> Tensor:
        if self.fastlm_options.gelu and not parts.reason_against_gelu(self.activation):
            return linear_gelu(self, self.ffn, self.activation, x)
        return self.activation(self.ffn(x))


class MLMHead(Transform):
    """Computes AlbertMLMHead: the transform, then the logits."""

    act = "activation"

    def transform(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.decoder(self.transform(hidden_states))


class MaskedLM(MaskedLoss):
    """Computes AlbertForMaskedLM's loss."""

    trunk, decoder = "albert", "predictions.decoder"

    def features(self, hidden: Tensor) -> Tensor:
        head = self.predictions
        if isinstance(head, MLMHead):
            return head.transform(hidden)
        return head.LayerNorm(head.activation(head.dense(hidden)))


class PreTraining(MaskedLM):
    """Computes AlbertForPreTraining's loss, the sum of the masked-LM and the sentence-order loss."""

    needs = ("labels", "sentence_order_label")

    def output(self, loss: Tensor, hidden: ModelOutput, labels: dict[str, Tensor]) -> ModelOutput:
        scores = self.sop_classifier(hidden.pooler_output)
        order = F.cross_entropy(scores.view(-1, 2), labels["sentence_order_label"].view(-1))
        return albert.AlbertForPreTrainingOutput(
            loss=loss + order, sop_logits=scores, hidden_states=hidden.hidden_states, attentions=hidden.attentions
        )


BASE = albert.AlbertPreTrainedModel
REPLACEMENTS = {
    albert.AlbertAttention: Attention,
    albert.AlbertEmbeddings: Embeddings,
    albert.AlbertLayer: Layer,
    albert.AlbertMLMHead: MLMHead,
    albert.AlbertForMaskedLM: MaskedLM,
    albert.AlbertForPreTraining: PreTraining,
}
