"""Causal language modelling: the next token (GPT-1, section 3.1)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fastlm.data import ngrams, tokenizer
from fastlm.data.tokenizer import Tokenizer
from fastlm.data.windows import Windows
from fastlm.inference.generate import generate_text
from fastlm.tasks.base import Batch
from fastlm.tasks.pretraining import Pretraining, as_line, held_out_sentences

if TYPE_CHECKING:
    from fastlm.train.trainer import Trainer

GIVEN, WRITTEN = 4, 60  # words that the model is given in an example, tokens that it writes
QUOTES = str.maketrans("", "", '"“”_')  # would close later than the beginning that is given


class CausalLM(Pretraining):
    """The next token of windows of running text, of a model with the head "lm"."""

    loss_names = ("loss",)
    figure_names = {  # noqa: RUF012
        "loss": ("loss", ".3f"),
        "perplexity": ("perplexity", ".1f"),
        "bits_per_byte": ("bits per byte", ".3f"),
    }

    def train_tokenizer(self, documents: Iterable[str], vocab_size: int) -> Tokenizer:
        return tokenizer.train_bpe(documents, vocab_size)

    def dataset(self, split: str, length: int, batch_size: int, seed: int) -> Windows:
        return Windows(self.shards, split, length, batch_size, seed)

    def tokens(self, batch: Batch) -> int:
        return batch["tokens"].numel()

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        return (model(**batch).loss,)

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        losses = torch.stack([model(**batch).loss.float() for batch in batches])  # equal numbers of tokens
        return {"loss": losses.mean().item()}

    def report(self, trainer: Trainer, name: str) -> dict[str, Any]:
        """Loss, perplexity and bits per byte on the held-out windows, those of the n-grams on the same tokens, and text
        that the model writes from the beginnings of held-out sentences."""
        batches = list(trainer.validation_batches())
        before, after = (np.concatenate([batch[part].numpy() for batch in batches]) for part in ("tokens", "targets"))
        losses = ngrams.ngram_losses(self.shards.split("train").tokens, before, after, self.tokenizer.vocab_size)
        losses[name] = trainer.evaluate(batches)["loss"]
        held_out = self.shards.split("validation")
        scores = {model: ngrams.score(loss, len(held_out.tokens), held_out.bytes) for model, loss in losses.items()}
        return {
            "scores": {model: score._asdict() for model, score in scores.items()},
            "examples_title": "What it writes after the words in bold, the first of held-out sentences",
            "examples": self._examples(trainer),
        }

    def try_command(self, folder: Path) -> str:
        return f'fastlm generate {shlex.quote(str(folder))} --prompt "..."'

    def _examples(self, trainer: Trainer) -> list[str]:
        generator = torch.Generator().manual_seed(trainer.config.seed)
        sampling = {"temperature": 0.8, "top_k": 40, "generator": generator}
        examples = []
        for sentence in held_out_sentences(self.shards.split("validation")):
            begun = " ".join(as_line(self.tokenizer, sentence).translate(QUOTES).split()[:GIVEN])
            if not begun:  # a sentence of nothing but quotes
                continue
            text = generate_text(trainer.model, self.tokenizer, begun, WRITTEN, **sampling)
            examples.append(_emphasised(begun, " ".join(text.split())))
        return examples


def _emphasised(begun: str, text: str) -> str:
    """The beginning in bold, then the text up to the end of its last whole sentence, if there is one."""
    begun = begun if text.startswith(begun) else ""
    rest = text[len(begun) :]
    ends = [match.end() for match in re.finditer(r"[.!?]+[\"'”’)]*", rest)]
    return (f"**{begun}**" if begun else "") + (rest[: ends[-1]] if ends else rest)
