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

from fastlm.data import tokenizer
from fastlm.data.tokenizer import Tokenizer
from fastlm.data.windows import Windows
from fastlm.evaluate import ngrams
from fastlm.inference.generate import generate_text
from fastlm.tasks.base import Batch
from fastlm.tasks.pretraining import Pretraining, as_line, held_out_sentences

if TYPE_CHECKING:
    from fastlm.train.trainer import Trainer

PROMPT_WORDS, NEW_TOKENS = 4, 60  # in an example of the report
QUOTES = str.maketrans("", "", '"“”_')  # removed from prompts, where they would open and never close


class CausalLM(Pretraining):
    """Learns the next token in windows of text, with a model that has the head "lm"."""

    loss_names = ("loss",)
    metric_names = {  # noqa: RUF012
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
        losses = torch.stack([model(**batch).loss.float() for batch in batches])  # all of the same size
        return {"loss": losses.mean().item()}

    def report(self, trainer: Trainer, name: str) -> dict[str, Any]:
        """Reports loss, perplexity and bits per byte on the held-out windows, the same for n-grams, and examples.

        In an example the model continues the beginning of a held-out sentence.
        """
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
            prompt = " ".join(as_line(self.tokenizer, sentence).translate(QUOTES).split()[:PROMPT_WORDS])
            if not prompt:  # the sentence is only quotes
                continue
            text = generate_text(trainer.model, self.tokenizer, prompt, NEW_TOKENS, **sampling)
            examples.append(_emphasised(prompt, " ".join(text.split())))
        return examples


def _emphasised(prompt: str, text: str) -> str:
    """Returns the text with the prompt in bold, cut after its last whole sentence, if there is one."""
    prompt = prompt if text.startswith(prompt) else ""
    rest = text[len(prompt) :]
    ends = [match.end() for match in re.finditer(r"[.!?]+[\"'”’)]*", rest)]
    return (f"**{prompt}**" if prompt else "") + (rest[: ends[-1]] if ends else rest)
