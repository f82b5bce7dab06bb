"""RoBERTa of transformers: what is replaced, class by class."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.activations import gelu
from transformers.models.roberta import modeling_roberta as roberta

from fastlm.patching import parts
from fastlm.patching.options import PatchOptions
from fastlm.patching.swap import Swapped
from fastlm.patching.transformers.attention import SelfAttention
from fastlm.patching.transformers.layers import AddNorm, Embeddings, Intermediate, transform
from fastlm.patching.transformers.losses import CausalLoss, MaskedLoss


class RobertaEmbeddings(Embeddings):
    """Computes RobertaEmbeddings, whose positions count tokens that are not padding."""

    def positions(self, tokens: Tensor, positions: Tensor | None, cached: int) -> Tensor:
        if positions is None:
            positions = self.create_position_ids_from_input_ids(tokens, self.padding_idx, cached)
        return super().positions(tokens, positions, cached)


class LMHead(Swapped):
    """Computes RobertaLMHead: the transform, then the logits."""

    switch = "gelu"
    absorbs = ("layer_norm",)

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        return parts.reason_against_norm(module.layer_norm)

    def transform(self, features: Tensor) -> Tensor:
        return transform(self, self.dense, gelu, self.layer_norm, features)

    def forward(self, features: Tensor, **kwargs: Any) -> Tensor:
        return self.decoder(self.transform(features))


class RobertaLoss:
    """Names RoBERTa's parts."""

    trunk, decoder = "roberta", "lm_head.decoder"

    def features(self, hidden: Tensor) -> Tensor:
        head = self.lm_head
        if isinstance(head, LMHead):
            return head.transform(hidden)
        return head.layer_norm(gelu(head.dense(hidden)))


class MaskedLM(RobertaLoss, MaskedLoss):
    """Computes RobertaForMaskedLM's loss."""


class CausalLM(RobertaLoss, CausalLoss):
    """Computes RobertaForCausalLM's loss."""


BASE = roberta.RobertaPreTrainedModel
REPLACEMENTS = {
    roberta.RobertaSelfAttention: SelfAttention,
    roberta.RobertaCrossAttention: SelfAttention,
    roberta.RobertaEmbeddings: RobertaEmbeddings,
    roberta.RobertaSelfOutput: AddNorm,
    roberta.RobertaIntermediate: Intermediate,
    roberta.RobertaOutput: AddNorm,
    roberta.RobertaLMHead: LMHead,
    roberta.RobertaForMaskedLM: MaskedLM,
    roberta.RobertaForCausalLM: CausalLM,
}
