"""ELECTRA of transformers: what is replaced, class by class."""

from __future__ import annotations

from torch import Tensor
from transformers.models.electra import modeling_electra as electra

from fastlm.patching.transformers.attention import SelfAttention
from fastlm.patching.transformers.layers import AddNorm, Embeddings, Intermediate, Transform
from fastlm.patching.transformers.losses import CausalLoss, MaskedLoss


class GeneratorPredictions(Transform):
    """Computes ElectraGeneratorPredictions, the generator's masked-LM transform."""

    act = "activation"


class ElectraLoss:
    """Names the parts of ELECTRA's generator."""

    trunk, decoder = "electra", "generator_lm_head"

    def features(self, hidden: Tensor) -> Tensor:
        return self.generator_predictions(hidden)


class MaskedLM(ElectraLoss, MaskedLoss):
    """Computes ElectraForMaskedLM's loss."""


class CausalLM(ElectraLoss, CausalLoss):
    """Computes ElectraForCausalLM's loss."""


BASE = electra.ElectraPreTrainedModel
REPLACEMENTS = {
    electra.ElectraSelfAttention: SelfAttention,
    electra.ElectraCrossAttention: SelfAttention,
    electra.ElectraEmbeddings: Embeddings,
    electra.ElectraSelfOutput: AddNorm,
    electra.ElectraIntermediate: Intermediate,
    electra.ElectraOutput: AddNorm,
    electra.ElectraGeneratorPredictions: GeneratorPredictions,
    electra.ElectraForMaskedLM: MaskedLM,
    electra.ElectraForCausalLM: CausalLM,
}
