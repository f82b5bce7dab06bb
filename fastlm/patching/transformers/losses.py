"""Replacements for models with a loss over the vocabulary: in training it is computed without ever holding the logits.

A subclass names the parts of its model. The loss is computed in training with labels; every other call, and calls that
want a tuple or the logits, take the model's own way, over replaced layers.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions, MaskedLMOutput
from transformers.utils import ModelOutput

from fastlm import ops
from fastlm.nn.loss import IGNORED
from fastlm.patching import parts
from fastlm.patching.options import PatchOptions
from fastlm.patching.swap import Swapped


class VocabularyLoss(Swapped):
    """Is the base of the models with a loss over the vocabulary.

    trunk: the attribute of the model's trunk. decoder: the path of the linear layer that makes the logits.
    needs: the labels that all must be given. shifted: whether each position predicts the next one. sparse: whether few
    positions have labels.
    """

    switch = "loss"
    trunk: ClassVar[str]
    decoder: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ("labels",)
    shifted: ClassVar[bool] = False
    sparse: ClassVar[bool] = False

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        decoder = module.get_submodule(cls.decoder)
        if not parts.is_plain(decoder, nn.Linear):
            return f"its layer of logits, {cls.decoder}, is a {type(decoder).__name__}, or has hooks"
        if cls.shifted and getattr(module.loss_function, "__name__", "") != "ForCausalLMLoss":
            return "it has a loss_function of its own"
        return None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(self.argument_names, args, strict=False)) | kwargs
        if not self._is_fused(given):
            return super().forward(*args, **kwargs)
        options = {name: given.pop(name, None) for name in ("num_items_in_batch", "shift_labels", "logits_to_keep")}
        labels = {name: given.pop(name) for name in self.needs}
        if self.shifted:
            given["use_cache"] = False
        hidden = getattr(self, self.trunk)(**given | {"return_dict": True})
        targets = self._targets(labels["labels"], options["shift_labels"])
        loss = vocabulary_loss(
            self.features(hidden[0]),
            self.get_submodule(self.decoder),
            targets,
            options["num_items_in_batch"],
            skip_ignored=self.sparse or targets.device.type == "cpu",
            backend=self.fastlm_options.backend,
        )
        return self.output(loss, hidden, labels)

    def _is_fused(self, given: dict[str, Any]) -> bool:
        """Returns whether a call's loss is computed here."""
        returns_dict = given.get("return_dict")
        return (
            self.training
            and not self.fastlm_options.return_logits
            and all(given.get(name) is not None for name in self.needs)
            and (self.config.return_dict if returns_dict is None else returns_dict)
            and given.get("ignore_index", IGNORED) == IGNORED
            and (type(given.get("logits_to_keep", 0)) is int and not given.get("logits_to_keep", 0))
            and parts.is_plain(self.get_submodule(self.decoder), nn.Linear)
        )

    def _targets(self, labels: Tensor, shift_labels: Tensor | None) -> Tensor:
        """Returns the targets of all positions; for a causal model each is the label of the next position."""
        if not self.shifted:
            return labels
        return F.pad(labels, (0, 1), value=IGNORED)[..., 1:] if shift_labels is None else shift_labels

    def features(self, hidden: Tensor) -> Tensor:
        """Returns the inputs (B, S, E) of the layer of logits for the trunk's hidden states (B, S, E')."""
        return hidden

    def output(self, loss: Tensor, hidden: ModelOutput, labels: dict[str, Tensor]) -> ModelOutput:
        """Returns the model's output. `hidden` is the output of the trunk."""
        raise TypeError(f"{type(self).__name__} defines no output")


class MaskedLoss(VocabularyLoss):
    """Is the base of masked-LM models."""

    sparse = True

    def output(self, loss: Tensor, hidden: ModelOutput, labels: dict[str, Tensor]) -> ModelOutput:
        return MaskedLMOutput(loss=loss, hidden_states=hidden.hidden_states, attentions=hidden.attentions)


class CausalLoss(VocabularyLoss):
    """Is the base of language models; `result` is the class of their output."""

    shifted = True
    result: ClassVar[type[ModelOutput]] = CausalLMOutputWithCrossAttentions

    def output(self, loss: Tensor, hidden: ModelOutput, labels: dict[str, Tensor]) -> ModelOutput:
        names = ("hidden_states", "attentions", "cross_attentions")
        return self.result(loss=loss, **{name: hidden[name] for name in names if name in hidden})


def vocabulary_loss(
    features: Tensor,
    decoder: nn.Linear,
    targets: Tensor,
    num_items: Tensor | int | None,
    **options: Any,
) -> Tensor:
    """Returns the loss of features (B, S, E) and targets (B, S): a mean, or with num_items the sum divided by it.

    `options` are those of `linear_cross_entropy`. Without targets the loss is 0 (torch's is NaN).
    """
    loss = ops.linear_cross_entropy(
        features,
        decoder.weight,
        targets.to(features.device),
        bias=decoder.bias,
        reduction="mean" if num_items is None else "sum",
        **options,
    )
    if num_items is None:
        return loss
    return loss / (num_items.to(loss.device) if isinstance(num_items, Tensor) else num_items)
