"""BERT of transformers: what is replaced, class by class."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from transformers.models.bert import modeling_bert as bert
from transformers.utils import ModelOutput

from fastlm.patching.transformers.attention import SelfAttention
from fastlm.patching.transformers.layers import AddNorm, Embeddings, Intermediate, Transform
from fastlm.patching.transformers.losses import CausalLoss, MaskedLoss


class BertLoss:
    """Names BERT's parts."""

    trunk, decoder = "bert", "cls.predictions.decoder"

    def features(self, hidden: Tensor) -> Tensor:
        return self.cls.predictions.transform(hidden)


class MaskedLM(BertLoss, MaskedLoss):
    """Computes BertForMaskedLM's loss."""


class CausalLM(BertLoss, CausalLoss):
    """Computes BertLMHeadModel's loss."""


class PreTraining(BertLoss, MaskedLoss):
    """Computes BertForPreTraining's loss, the sum of the masked-LM and the next-sentence loss."""

    needs = ("labels", "next_sentence_label")

    def output(self, loss: Tensor, hidden: ModelOutput, labels: dict[str, Tensor]) -> ModelOutput:
        scores = self.cls.seq_relationship(hidden.pooler_output)
        follows = F.cross_entropy(scores.view(-1, 2), labels["next_sentence_label"].view(-1))
        return bert.BertForPreTrainingOutput(
            loss=loss + follows,
            seq_relationship_logits=scores,
            hidden_states=hidden.hidden_states,
            attentions=hidden.attentions,
        )


BASE = bert.BertPreTrainedModel
REPLACEMENTS = {
    bert.BertSelfAttention: SelfAttention,
    bert.BertCrossAttention: SelfAttention,
    bert.BertEmbeddings: Embeddings,
    bert.BertSelfOutput: AddNorm,
    bert.BertIntermediate: Intermediate,
    bert.BertOutput: AddNorm,
    bert.BertPredictionHeadTransform: Transform,
    bert.BertForMaskedLM: MaskedLM,
    bert.BertForPreTraining: PreTraining,
    bert.BertLMHeadModel: CausalLM,
}
