"""What GPT-1 and BERT each learn from: tokenizer, batches, losses, validation figures and the end's report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlm import models
from fastlm.data import corpus, ngrams, tokenizer
from fastlm.data.pairs import SentencePairs
from fastlm.data.shards import Shards, prepare
from fastlm.data.tokenizer import Tokenizer
from fastlm.data.windows import Windows
from fastlm.fill_mask import fill
from fastlm.generate import generate_text
from fastlm.train.config import PretrainConfig
from fastlm.train.run import Notify, RunFolder

Batch = dict[str, Tensor]


class Objective:
    """What is common to both: text to shards, and a model of the tokenizer's size."""

    loss_names: tuple[str, ...]

    def prepare(self, config: PretrainConfig, run: RunFolder, notify: Notify) -> tuple[Tokenizer, Shards]:
        """The run's tokenizer and shards; made from the text if they are not there yet."""
        paths = list(config.data) or [corpus.novels()]
        if run.tokenizer_file.is_file():
            trained = tokenizer.load(run.tokenizer_file)
        else:
            notify(f"training a tokenizer of {config.vocab_size} entries on {', '.join(map(str, paths))}")
            trained = self.train_tokenizer(corpus.read_documents(paths, document=config.document), config.vocab_size)
            trained.save(run.tokenizer_file)
        if not run.data.is_dir():
            notify(f"tokenising into {run.data}")
            options = {"validation_fraction": config.validation_fraction, "document": config.document}
            prepare(paths, run.data, trained, **options)
        return trained, Shards.open(run.data, trained)

    def build(self, config: PretrainConfig, vocab_size: int) -> nn.Module:
        """The preset's model with the tokenizer's vocabulary and the run's dropout."""
        preset = models.PRESETS[config.model]
        longest = max(length for _, length in config.phases)
        if longest > preset.context:
            raise ValueError(f"phases: sequence length {longest} is above the {preset.context} of {config.model}")
        dropout = {name: config.dropout for name in ("dropout", "attention_dropout", "embedding_dropout")}
        return models.build(replace(preset, vocab_size=vocab_size, **dropout), config.backend)


class CausalLM(Objective):
    """GPT-1: the next token (section 3.1)."""

    loss_names = ("loss",)

    def train_tokenizer(self, documents: Iterable[str], vocab_size: int) -> Tokenizer:
        return tokenizer.train_bpe(documents, vocab_size)

    def dataset(self, shards: Shards, split: str, length: int, batch_size: int, seed: int) -> Windows:
        return Windows(shards, split, length, batch_size, seed)

    def tokens(self, batch: Batch) -> int:
        return batch["tokens"].numel()

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        return (model(**batch),)

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        losses = torch.stack([model(**batch).float() for batch in batches])  # equal numbers of tokens
        loss = losses.mean().item()
        return {"loss": loss, "perplexity": math.exp(loss)}

    def report(self, trainer: Any, trained: Tokenizer) -> dict[str, Any]:
        pass


class MaskedLM(Objective):
    """BERT: masked tokens and next sentence (section 3.1)."""

    loss_names = ("loss", "mlm_loss", "nsp_loss")

    def train_tokenizer(self, documents: Iterable[str], vocab_size: int) -> Tokenizer:
        return tokenizer.train_wordpiece(documents, vocab_size)

    def dataset(self, shards: Shards, split: str, length: int, batch_size: int, seed: int) -> SentencePairs:
        return SentencePairs(shards, split, length, batch_size, seed)

    def tokens(self, batch: Batch) -> int:
        return int(batch["lengths"].sum())

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        output = model(**batch)
        return output.loss, output.mlm_loss, output.nsp_loss

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Means over all masked positions and all pairs; the loss is their sum, as in training."""
        sums = torch.stack([torch.stack(self._sums(model, batch)) for batch in batches]).double().sum(0).tolist()
        masked, mlm_loss, mlm_right, pairs, nsp_loss, nsp_right = sums
        return {
            "loss": mlm_loss / masked + nsp_loss / pairs,
            "mlm_loss": mlm_loss / masked,
            "nsp_loss": nsp_loss / pairs,
            "masked_accuracy": mlm_right / masked,
            "nsp_accuracy": nsp_right / pairs,
        }

    def _sums(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        targets, labels = batch["mlm_targets"], batch["next_sentence_labels"]
        output = model(batch["tokens"], batch["segments"], batch["lengths"])
        words = model.mlm_logits(output.hidden, batch["mlm_positions"]).float()
        next_sentence = model.nsp_logits(output.pooled).float()
        asked = targets != -100
        return [
            asked.sum(),
            F.cross_entropy(words.flatten(0, 1), targets.flatten(), reduction="sum"),
            ((words.argmax(-1) == targets) & asked).sum(),
            torch.tensor(labels.numel(), device=labels.device),
            F.cross_entropy(next_sentence, labels, reduction="sum"),
            (next_sentence.argmax(-1) == labels).sum(),
        ]


def objective_of(model: str) -> Objective:
    """The objective of a model preset."""
    return CausalLM() if isinstance(models.PRESETS[model], models.GPT1Config) else MaskedLM()
