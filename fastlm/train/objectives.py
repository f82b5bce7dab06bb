"""What GPT-1 and BERT each learn from: tokenizer, batches, losses, validation figures and the end's report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlm import models
from fastlm.data import corpus, tokenizer
from fastlm.data.pairs import SentencePairs
from fastlm.data.shards import Shards, Split, prepare
from fastlm.data.tokenizer import Tokenizer
from fastlm.data.windows import Windows
from fastlm.evaluate import ngrams
from fastlm.fill_mask import fill
from fastlm.generate import generate_text
from fastlm.train.config import PretrainConfig
from fastlm.train.run import Notify, RunFolder

if TYPE_CHECKING:
    from fastlm.train.trainer import Trainer

EXAMPLES = 4  # of the report
GIVEN, WRITTEN = 4, 60  # words that GPT-1 is given, tokens that it writes
QUOTES = str.maketrans("", "", '"“”_')  # what closes later than the beginning that is given

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
            documents = corpus.read_documents(paths, document=config.document)
            notify(f"training a tokenizer of {config.vocab_size} entries on {', '.join(map(str, paths))}")
            trained = self.train_tokenizer(documents, config.vocab_size)
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
        return {"loss": losses.mean().item()}

    def report(self, trainer: Trainer, trained: Tokenizer) -> dict[str, Any]:
        """Loss, perplexity and bits a byte on the held-out windows, those of the n-grams on the same tokens, and text
        that the model writes from the beginnings of held-out sentences."""
        batches = list(trainer.validation_batches())
        before, after = (np.concatenate([batch[name].numpy() for batch in batches]) for name in ("tokens", "targets"))
        losses = ngrams.ngram_losses(trainer.shards.split("train").tokens, before, after, trained.vocab_size)
        losses[trainer.config.model] = trainer.evaluate(batches)["loss"]
        held_out = trainer.shards.split("validation")
        scores = {name: ngrams.score(loss, len(held_out.tokens), held_out.bytes) for name, loss in losses.items()}
        return {
            "scores": {name: score._asdict() for name, score in scores.items()},
            "examples_title": "What it writes after the words in bold, the first of held-out sentences",
            "examples": self._examples(trainer, trained),
        }

    def _examples(self, trainer: Trainer, trained: Tokenizer) -> list[str]:
        generator = torch.Generator().manual_seed(trainer.config.seed)
        sampling = {"temperature": 0.8, "top_k": 40, "generator": generator}
        examples = []
        for sentence in _sentences(trainer.shards.split("validation")):
            begun = " ".join(_line(trained, sentence).translate(QUOTES).split()[:GIVEN])
            text = generate_text(trainer.model, trained, begun, WRITTEN, **sampling)
            examples.append(_emphasised(begun, " ".join(text.split())))
        return examples


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

    def report(self, trainer: Trainer, trained: Tokenizer) -> dict[str, Any]:
        """Figures on the held-out pairs, beside guesses that know only counts, and held-out sentences filled in.

        For the same masked positions: the unigram model guesses the most frequent token; the bigram model is shown the
        true token before, even where BERT sees a [MASK]. For the same pairs: "is next", always.
        """
        batches = list(trainer.validation_batches())
        before, after = (np.concatenate(parts) for parts in zip(*map(_masked_pairs, batches), strict=True))
        tokens = trainer.shards.split("train").tokens
        losses = ngrams.ngram_losses(tokens, before, after, trained.vocab_size)
        labels = torch.cat([batch["next_sentence_labels"] for batch in batches])
        guesses = {
            "unigram": {
                "mlm_loss": losses["unigram"],
                "masked_accuracy": float((after == ngrams.most_frequent(tokens, trained.vocab_size)).mean()),
                "nsp_accuracy": (labels == 0).double().mean().item(),
            },
            "bigram": {"mlm_loss": losses["bigram"]},
        }
        figures = trainer.evaluate(batches)
        del figures["loss"]  # the sum of the two
        return {
            "scores": guesses | {trainer.config.model: figures},
            "examples_title": "Held-out sentences: the hidden word, and what it puts there",
            "examples": self._examples(trainer, trained),
        }

    def _examples(self, trainer: Trainer, trained: Tokenizer) -> list[str]:
        mask, begin, end = (trained.id(name) for name in ("[MASK]", "[CLS]", "[SEP]"))
        examples = []
        for sentence in _sentences(trainer.shards.split("validation")):
            sentence = sentence[: trainer.model.config.context - 2]
            hidden = _a_word(trained, sentence)
            shown = [*sentence[:hidden], mask, *sentence[hidden + 1 :]]
            guesses = fill(trainer.model, trained, [begin, *shown, end], top=3)[0]
            words = ", ".join(f"{guess.token} {guess.probability:.0%}" for guess in guesses)
            examples.append(f"{_line(trained, shown)} ({_line(trained, [sentence[hidden]])}): {words}")
        return examples

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


def _masked_pairs(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """The true tokens at the predicted positions, and before each of them the true one that precedes it."""
    tokens, positions, targets = (batch[name].numpy() for name in ("tokens", "mlm_positions", "mlm_targets"))
    row, column = np.nonzero(targets != -100)
    text = tokens.copy()
    text[row, positions[row, column]] = targets[row, column]
    return text[row, positions[row, column] - 1], targets[row, column]


def _sentences(split: Split) -> Iterator[list[int]]:
    """EXAMPLES sentences that are neither short nor long, evenly spread over a split."""
    sizes = np.diff(split.sentences)
    chosen = np.flatnonzero((sizes >= 12) & (sizes <= 40))
    chosen = chosen if len(chosen) else np.flatnonzero(sizes == sizes.max())
    for i in chosen[np.linspace(0, len(chosen) - 1, min(EXAMPLES, len(chosen))).astype(int)]:
        yield split.tokens[split.sentences[i] : split.sentences[i + 1]].tolist()


def _emphasised(begun: str, text: str) -> str:
    """The beginning in bold, then the text up to the last sentence's end that was written, if there is one."""
    begun = begun if text.startswith(begun) else ""
    rest = text[len(begun) :]
    ends = [match.end() for match in re.finditer(r"[.!?]+[\"'”’)]*", rest)]
    return (f"**{begun}**" if begun else "") + (rest[: ends[-1]] if ends else rest)


def _a_word(trained: Tokenizer, sentence: list[int]) -> int:
    """The place of a token that is a whole word, as near the middle of a sentence as can be (else the middle)."""
    pieces = [trained.decode([token]) for token in sentence] + [""]
    whole = [i for i in range(len(sentence)) if pieces[i].isalpha() and not pieces[i + 1].startswith("##")]
    return min(whole or range(len(sentence)), key=lambda i: abs(i - len(sentence) // 2))


def _line(trained: Tokenizer, tokens: list[int]) -> str:
    return " ".join(trained.decode(tokens).split())
