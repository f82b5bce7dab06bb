"""Heads: they turn a trunk's hidden states into a loss or logits.

A head names the entries of a batch that its loss needs (`targets`). A model calls the head only if a batch holds them,
so an unused head costs nothing. Each call passes the model to the head, which may use the model's embedding or pooling
without owning them. This file has the heads of pretraining; those of fine-tuning are in task_heads.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlm.nn.layer_norm import GELULayerNorm
from fastlm.nn.loss import IGNORED, LinearCrossEntropy
from fastlm.ops import _checks

if TYPE_CHECKING:
    from fastlm.models.base import Model


class Head(nn.Module):
    """Defines what a head is.

    targets: names of the batch's entries that `loss` takes; several heads may take the same entry.
    dropout_sites: number of seeds that a call of `loss` uses.
    reads_layout: whether `check` and `loss` also get `layout`, a `Layout`: where the batch's sequences lie.
    """

    targets: ClassVar[tuple[str, ...]] = ()
    dropout_sites = 0
    reads_layout = False

    def check_model(self, model: Model) -> None:
        """Raises TypeError or ValueError if the head does not fit a model. Called when the model gets the head."""

    def check(self, model: Model, tokens: Tensor, **targets: Tensor) -> None:
        """Raises TypeError or ValueError if targets do not fit tokens (B, S), or packed tokens (T,).

        Called before the trunk runs.
        """

    def loss(self, model: Model, hidden: Tensor, **targets: Tensor) -> Tensor:
        """Returns the loss for hidden states (B, S, E) or (T, E): a float32 scalar (float64 for float64).

        A head with dropout sites also gets `seeds`: per site one int64, or None outside training.
        """
        raise TypeError(f"{type(self).__name__} defines no loss")

    def grow_vocabulary(self, count: int) -> None:
        """Adds entries for `count` new tokens to parameters with an entry per token, if the head has such."""


class CausalLMHead(Head):
    """Predicts the next token by the word embedding (GPT-1, equations 1 and 2). It has no parameters of its own.

    targets (B, S) or packed (T,) int64: the token after each position, or -100 for a position that is not predicted.
    """

    targets = ("targets",)

    def __init__(self, *, backend: str = "auto"):
        super().__init__()
        self.cross_entropy = LinearCrossEntropy(ignore_index=IGNORED, backend=backend)

    def check(self, model: Model, tokens: Tensor, *, targets: Tensor) -> None:
        model.check_ids("targets", targets, tokens.shape, model.config.vocab_size, ignore=IGNORED)

    def loss(self, model: Model, hidden: Tensor, *, targets: Tensor) -> Tensor:
        """Returns the mean loss over the positions that have a target."""
        return self.cross_entropy(hidden, model.embedding.word, targets)

    def logits(self, model: Model, hidden: Tensor) -> Tensor:
        """Returns logits (B, S, V), in the dtype of the weights or of autocast."""
        return F.linear(hidden, model.embedding.word)


class MaskedLMHead(Head):
    """Predicts tokens at chosen positions (BERT, section 3.1, task 1): LN(GELU(dense(x))) We^T + bias.

    We is the word embedding. mlm_positions, mlm_targets (B, P) int64: the positions and their tokens. P is the same in
    every batch: rows are padded with any position in [0, S) and the target -100. Only these positions are computed.
    """

    targets = ("mlm_positions", "mlm_targets")

    def __init__(self, vocab_size: int, hidden: int, *, gelu: str, eps: float, backend: str = "auto"):
        super().__init__()
        _checks.checked_size("MaskedLMHead", "vocab_size", vocab_size)
        _checks.checked_size("MaskedLMHead", "hidden", hidden)
        self.dense = nn.Linear(hidden, hidden)
        self.norm = GELULayerNorm(hidden, approximate=gelu, eps=eps, backend=backend)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.cross_entropy = LinearCrossEntropy(ignore_index=IGNORED, backend=backend)

    def check_model(self, model: Model) -> None:
        check_size(self, model, "hidden", self.dense.in_features)
        check_size(self, model, "vocab_size", self.bias.numel())

    def check(self, model: Model, tokens: Tensor, *, mlm_positions: Tensor, mlm_targets: Tensor) -> None:
        _check_padded(model, tokens, "mlm_positions")
        batch, length = tokens.shape
        if mlm_positions.ndim != 2:
            raise ValueError(
                f"{type(model).__name__}: mlm_positions must have shape (B, P), got {tuple(mlm_positions.shape)}"
            )
        model.check_ids("mlm_positions", mlm_positions, (batch, mlm_positions.shape[1]), length)
        model.check_ids("mlm_targets", mlm_targets, mlm_positions.shape, model.config.vocab_size, ignore=IGNORED)

    def loss(self, model: Model, hidden: Tensor, *, mlm_positions: Tensor, mlm_targets: Tensor) -> Tensor:
        """Returns the mean loss over the positions that have a target."""
        return self.cross_entropy(
            self.features(hidden, mlm_positions), model.embedding.word, mlm_targets, bias=self.bias
        )

    def logits(self, model: Model, hidden: Tensor, positions: Tensor) -> Tensor:
        """Returns logits (B, P, V) at positions (B, P) int64, in the dtype of the weights or of autocast."""
        model.check_ids("positions", positions, (hidden.shape[0], *positions.shape[1:]), hidden.shape[1])
        return F.linear(self.features(hidden, positions), model.embedding.word, self.bias)

    def features(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Returns LN(GELU(dense(hidden[b, positions[b, p]]))), (B, P, E)."""
        return self.norm(F.linear(_gather_rows(hidden, positions), self.dense.weight), bias=self.dense.bias)

    @torch.no_grad()
    def grow_vocabulary(self, count: int) -> None:
        self.bias = nn.Parameter(torch.cat([self.bias, self.bias.new_zeros(count)]), self.bias.requires_grad)


class NextSentenceHead(Head, nn.Linear):
    """Predicts whether sentence B follows A (BERT, section 3.1, task 2) from the model's pooling of [CLS].

    next_sentence_labels (B,) int64: 0 if it follows, 1 if not; -100 if it is not predicted.
    """

    targets = ("next_sentence_labels",)

    def __init__(self, hidden: int, *, backend: str = "auto"):
        super().__init__(_checks.checked_size("NextSentenceHead", "hidden", hidden), 2)
        self.cross_entropy = LinearCrossEntropy(ignore_index=IGNORED, backend=backend)

    def check_model(self, model: Model) -> None:
        if not hasattr(model, "pooler"):
            raise TypeError(f"NextSentenceHead: a model with a pooling of [CLS] expected, got a {type(model).__name__}")
        check_size(self, model, "hidden", self.in_features)

    def check(self, model: Model, tokens: Tensor, *, next_sentence_labels: Tensor) -> None:
        _check_padded(model, tokens, "next_sentence_labels")
        model.check_ids("next_sentence_labels", next_sentence_labels, tokens.shape[:1], 2, ignore=IGNORED)

    def loss(self, model: Model, hidden: Tensor, *, next_sentence_labels: Tensor) -> Tensor:
        """Returns the mean loss over the sequences that have a label."""
        return self.cross_entropy(model.pooled(hidden), self.weight, next_sentence_labels, bias=self.bias)

    def logits(self, model: Model, hidden: Tensor) -> Tensor:
        """Returns logits (B, 2); index 0 is "is next"."""
        return F.linear(model.pooled(hidden), self.weight, self.bias)


def check_size(head: Head, model: Model, name: str, size: int) -> None:
    """Raises ValueError unless a size of the head is the one in the model's configuration."""
    expected = getattr(model.config, name)
    if size != expected:
        raise ValueError(f"{type(head).__name__}: {name} {expected} of the model expected, got {size}")


def _check_padded(model: Model, tokens: Tensor, name: str) -> None:
    if tokens.ndim != 2:
        given = tuple(tokens.shape)
        raise ValueError(f"{type(model).__name__}: {name} go with padded tokens (B, S), got packed tokens {given}")


def _gather_rows(hidden: Tensor, positions: Tensor) -> Tensor:
    """Gathers hidden[b, positions[b, p]] into (B, P, E)."""
    batch, length, _ = hidden.shape
    first = torch.arange(batch, device=positions.device) * length
    rows = (positions + first[:, None]).flatten()
    return hidden.flatten(0, 1).index_select(0, rows).unflatten(0, positions.shape)
