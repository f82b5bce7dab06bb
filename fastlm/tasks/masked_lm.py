"""Masked language modelling with next-sentence prediction (BERT, section 3.1)."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlm._options import require
from fastlm.data import tokenizer
from fastlm.data.config import CorpusConfig
from fastlm.data.pairs import SentencePairs
from fastlm.data.tokenizer import Tokenizer
from fastlm.evaluate import ngrams
from fastlm.inference.fill_mask import fill
from fastlm.models import ModelConfig
from fastlm.nn.heads import IGNORED
from fastlm.tasks.base import Batch
from fastlm.tasks.pretraining import Pretraining, as_line, held_out_sentences

if TYPE_CHECKING:
    from fastlm.train.trainer import Trainer


class MaskedLM(Pretraining):
    """Learns masked tokens and next sentences of sentence pairs, with a model that has the heads "mlm" and "nsp".

    Raises ValueError for a model without a segment for each sentence of a pair.
    """

    loss_names = ("loss", "mlm_loss", "nsp_loss")
    metric_names = {  # noqa: RUF012
        "mlm_loss": ("masked loss", ".3f"),
        "nsp_loss": ("next-sentence loss", ".3f"),
        "masked_accuracy": ("masked accuracy", ".1%"),
        "nsp_accuracy": ("next-sentence accuracy", ".1%"),
    }

    def __init__(self, model: ModelConfig, corpus: CorpusConfig):
        segments = getattr(model, "segments", 0)
        require(segments >= 2, "segments", "for sentence pairs, at least 2", segments)
        super().__init__(model, corpus)

    def train_tokenizer(self, documents: Iterable[str], vocab_size: int) -> Tokenizer:
        return tokenizer.train_wordpiece(documents, vocab_size)

    def dataset(self, split: str, length: int, batch_size: int, seed: int) -> SentencePairs:
        return SentencePairs(self.shards, split, length, batch_size, seed)

    def tokens(self, batch: Batch) -> int:
        return int(batch["lengths"].sum())

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        output = model(**batch)
        return output.loss, output.losses["mlm"], output.losses["nsp"]

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Returns means over all masked positions and over all pairs; "loss" is the sum of both, as in training."""
        sums = torch.stack([torch.stack(_batch_sums(model, batch)) for batch in batches]).double().sum(0).tolist()
        masked, mlm_loss, mlm_correct, pairs, nsp_loss, nsp_correct = sums
        return {
            "loss": mlm_loss / masked + nsp_loss / pairs,
            "mlm_loss": mlm_loss / masked,
            "nsp_loss": nsp_loss / pairs,
            "masked_accuracy": mlm_correct / masked,
            "nsp_accuracy": nsp_correct / pairs,
        }

    def report(self, trainer: Trainer, name: str) -> dict[str, Any]:
        """Reports metrics on the held-out pairs, those of two baselines on the same pairs, and examples.

        "unigram" guesses the most frequent token at every masked position, and "is next" for every pair. "bigram" sees
        the true token before each masked position, even if the model sees a [MASK] there. In an example the model
        fills in a word of a held-out sentence.
        """
        batches = list(trainer.validation_batches())
        before, after = (np.concatenate(parts) for parts in zip(*map(_masked_pairs, batches), strict=True))
        tokens, vocab_size = self.shards.split("train").tokens, self.tokenizer.vocab_size
        losses = ngrams.ngram_losses(tokens, before, after, vocab_size)
        labels = torch.cat([batch["next_sentence_labels"] for batch in batches])
        baselines = {
            "unigram": {
                "mlm_loss": losses["unigram"],
                "masked_accuracy": float((after == ngrams.most_frequent(tokens, vocab_size)).mean()),
                "nsp_accuracy": (labels == 0).double().mean().item(),
            },
            "bigram": {"mlm_loss": losses["bigram"]},
        }
        metrics = trainer.evaluate(batches)
        del metrics["loss"]  # the sum of the two losses
        return {
            "scores": baselines | {name: metrics},
            "examples_title": "Held-out sentences: the hidden word, and what it puts there",
            "examples": self._examples(trainer),
        }

    def try_command(self, folder: Path) -> str:
        return f'fastlm fill-mask {shlex.quote(str(folder))} "... [MASK] ..."'

    def _examples(self, trainer: Trainer) -> list[str]:
        mask, begin, end = (self.tokenizer.id(name) for name in ("[MASK]", "[CLS]", "[SEP]"))
        examples = []
        for sentence in held_out_sentences(self.shards.split("validation")):
            sentence = sentence[: trainer.model.config.context - 2]
            hidden = _central_word(self.tokenizer, sentence)
            shown = [*sentence[:hidden], mask, *sentence[hidden + 1 :]]
            guesses = fill(trainer.model, self.tokenizer, [begin, *shown, end], top=3)[0]
            words = ", ".join(f"{guess.token} {guess.probability:.0%}" for guess in guesses)
            word = as_line(self.tokenizer, [sentence[hidden]])
            examples.append(f"{as_line(self.tokenizer, shown)} ({word}): {words}")
        return examples


def _batch_sums(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Returns scalars for a batch: masked positions, their loss and correct guesses; the same three for the pairs."""
    targets, labels = batch["mlm_targets"], batch["next_sentence_labels"]
    hidden = model(batch["tokens"], batch["segments"], batch["lengths"]).hidden
    words = model.logits("mlm", hidden, batch["mlm_positions"]).float()
    next_sentence = model.logits("nsp", hidden).float()
    predicted = targets != IGNORED
    return [
        predicted.sum(),
        F.cross_entropy(words.flatten(0, 1), targets.flatten(), reduction="sum"),
        ((words.argmax(-1) == targets) & predicted).sum(),
        torch.tensor(labels.numel(), device=labels.device),
        F.cross_entropy(next_sentence, labels, reduction="sum"),
        (next_sentence.argmax(-1) == labels).sum(),
    ]


def _masked_pairs(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Returns two arrays: the true token before each predicted position, and the true token at it."""
    tokens, positions, targets = (batch[name].numpy() for name in ("tokens", "mlm_positions", "mlm_targets"))
    row, column = np.nonzero(targets != IGNORED)
    text = tokens.copy()
    text[row, positions[row, column]] = targets[row, column]
    return text[row, positions[row, column] - 1], targets[row, column]


def _central_word(tokenizer: Tokenizer, sentence: list[int]) -> int:
    """Returns the index of the whole-word token nearest to the middle of a sentence, else of the middle token."""
    pieces = [tokenizer.decode([token]) for token in sentence] + [""]
    whole = [i for i in range(len(sentence)) if pieces[i].isalpha() and not pieces[i + 1].startswith("##")]
    return min(whole or range(len(sentence)), key=lambda i: abs(i - len(sentence) // 2))
