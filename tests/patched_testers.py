"""Small models of every architecture that fastlm.patch knows, with inputs and labels for each of its classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AlbertConfig,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    OpenAIGPTConfig,
    PreTrainedConfig,
    RobertaConfig,
)

VOCABULARY, BATCH, LENGTH, CHOICES, CLASSES = 99, 5, 7, 4, 2

# The kinds of labels that classes take.
TOKENS, CLASS, TAGS, CHOICE = "tokens", "class", "tags", "choice"
SPAN, NEXT, ORDER, REPLACED, NONE, DOUBLE = "span", "next", "order", "replaced", "none", "double"


@dataclass(frozen=True)
class Architecture:
    """Holds a configuration's constructor, the classes with the kinds of their labels, and whether it has segments."""

    config: Callable[..., PreTrainedConfig]
    options: dict[str, Any]
    labels: dict[str, str]
    segments: bool = False


_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37,
          "max_position_embeddings": 64}  # fmt: skip
_DISTILBERT = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 37, "max_position_embeddings": 64}
_GPT = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "pad_token_id": VOCABULARY - 1}
_ENDS = {"bos_token_id": VOCABULARY - 1, "eos_token_id": VOCABULARY - 1}
_TASKS = {"ForSequenceClassification": CLASS, "ForTokenClassification": TAGS, "ForQuestionAnswering": SPAN,
          "ForMultipleChoice": CHOICE}  # fmt: skip


def _labels(prefix: str, tasks: dict[str, str] = _TASKS, **own: str) -> dict[str, str]:
    return {f"{prefix}{name}": kind for name, kind in ({"Model": NONE} | own | tasks).items()}


TESTERS = {
    "albert": Architecture(
        AlbertConfig, _SIZES | {"embedding_size": 16}, _labels("Albert", ForPreTraining=ORDER, ForMaskedLM=TOKENS), True
    ),
    "bert": Architecture(
        BertConfig,
        _SIZES,
        _labels("Bert", ForPreTraining=NEXT, ForMaskedLM=TOKENS, LMHeadModel=TOKENS, ForNextSentencePrediction=CLASS),
        True,
    ),
    "distilbert": Architecture(DistilBertConfig, _DISTILBERT, _labels("DistilBert", ForMaskedLM=TOKENS)),
    "electra": Architecture(
        ElectraConfig,
        _SIZES | {"embedding_size": 16},
        _labels("Electra", ForPreTraining=REPLACED, ForMaskedLM=TOKENS, ForCausalLM=TOKENS),
        True,
    ),
    "gpt2": Architecture(
        GPT2Config,
        _GPT | _ENDS,
        _labels(
            "GPT2",
            {name: kind for name, kind in _TASKS.items() if kind != CHOICE},
            LMHeadModel=TOKENS,
            DoubleHeadsModel=DOUBLE,
        ),
    ),
    "openai_gpt": Architecture(
        OpenAIGPTConfig,
        _GPT,
        _labels("OpenAIGPT", {"ForSequenceClassification": CLASS}, LMHeadModel=TOKENS, DoubleHeadsModel=DOUBLE),
    ),
    "roberta": Architecture(RobertaConfig, _SIZES, _labels("Roberta", ForMaskedLM=TOKENS, ForCausalLM=TOKENS), True),
}


class Tester:
    """Makes configurations and inputs, as transformers' testers do. The names are those that its tests read."""

    is_training = True
    num_choices, batch_size, seq_length = CHOICES, BATCH, LENGTH
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def __init__(self, architecture: Architecture):
        self.architecture = architecture

    def get_config(self) -> PreTrainedConfig:
        return self.architecture.config(vocab_size=VOCABULARY, num_labels=CLASSES, **self.architecture.options)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
        """Returns a configuration and inputs padded at the right, since outputs at padded positions may differ."""
        lengths = torch.randint(2, LENGTH + 1, (BATCH, 1))
        lengths[0] = LENGTH
        valid, tokens = torch.arange(LENGTH) < lengths, torch.randint(5, VOCABULARY - 1, (BATCH, LENGTH))
        inputs = {
            "input_ids": tokens.where(valid, self.get_config().pad_token_id),  # GPT's classifiers look for it
            "attention_mask": valid.long(),
        }
        if self.architecture.segments:
            kinds = 1 if self.architecture.config is RobertaConfig else 2
            inputs["token_type_ids"] = torch.randint(0, kinds, (BATCH, LENGTH))
        return self.get_config(), inputs

    def completed(self, inputs: dict[str, Any], name: str, with_labels: bool) -> dict[str, Any]:
        """Returns a class's inputs with those labels that it needs."""
        kind = self.architecture.labels[name]
        ids = inputs.get("input_ids", inputs.get("inputs_embeds"))
        if kind == DOUBLE and "mc_token_ids" not in inputs:
            inputs = {key: _choices(x) for key, x in inputs.items() if key != "attention_mask"}
            inputs["mc_token_ids"] = torch.full((len(ids), CHOICES), ids.shape[1] - 1)
        elif kind == CHOICE and ids.shape[1] != CHOICES:
            inputs = {key: _choices(x) for key, x in inputs.items()}
        return inputs | (self._labels(kind, (len(ids), LENGTH)) if with_labels else {})

    def _labels(self, kind: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
        def draw(high: int, *sizes: int) -> Tensor:
            return torch.randint(0, high, sizes)

        rows = shape[0]
        tokens = {"labels": draw(VOCABULARY, *shape)}
        return {
            NONE: {},
            TOKENS: tokens,
            NEXT: tokens | {"next_sentence_label": draw(2, rows)},
            ORDER: tokens | {"sentence_order_label": draw(2, rows)},
            REPLACED: {"labels": draw(2, *shape)},
            CLASS: {"labels": draw(2, rows)},
            TAGS: {"labels": draw(CLASSES, *shape)},
            CHOICE: {"labels": draw(CHOICES, rows)},
            SPAN: {"start_positions": draw(2, rows), "end_positions": draw(2, rows)},
            DOUBLE: {"labels": draw(VOCABULARY, rows, CHOICES, *shape[1:]), "mc_labels": draw(CHOICES, rows)},
        }[kind]


def _choices(x: Any) -> Any:
    """Returns x (B, ...) as (B, choices, ...), if it is a tensor of rows."""
    if not isinstance(x, Tensor) or x.ndim < 2:
        return x
    return x.unsqueeze(1).expand(-1, CHOICES, *x.shape[1:]).contiguous()
