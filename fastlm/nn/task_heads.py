"""Heads of fine-tuning: classes, numbers, choices, tags and spans (BERT, figure 4; GPT-1, figure 1), and GPT-1's L3.

`rows`, (B,) or (B, k) int64, are the rows of `hidden.flatten(0, -2)` that a head reads: the token that stands for a
sequence, [CLS] of BERT, the extract token of GPT-1. So the heads are the same for padded (B, S, E) and packed (T, E)
hidden states. `Model.pooled` says what is read: BERT's tanh of a linear layer, the hidden state itself in GPT-1.

Logits and losses are float32 (float64 for float64), also under autocast, because they are ranked and compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlm.backends import dtype_name
from fastlm.nn.heads import IGNORED, CausalLMHead, Head
from fastlm.nn.layers import Dropout
from fastlm.nn.layout import Layout
from fastlm.ops._register import wide_dtype

if TYPE_CHECKING:
    from fastlm.models.base import Model

Seeds = Sequence[Tensor | None]


class _LinearHead(Head, nn.Linear):
    """Applies dropout, then a linear layer, whose `weight` (units, E) and `bias` (units,) are the parameters."""

    reads_layout = True

    def __init__(self, hidden: int, units: int, *, dropout: float, bias: bool, backend: str):
        super().__init__(hidden, units, bias=bias)
        self.dropout = Dropout(dropout, backend=backend)
        self.dropout_sites = 1 if dropout else 0

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"

    def drop(self, x: Tensor, seeds: Seeds, first_row: Tensor | None) -> Tensor:
        """Applies dropout to the rows of x (..., E), the first of which has the number `first_row`."""
        return self.dropout(x, seed=seeds[0], first_row=first_row) if seeds else x

    def linear(self, x: Tensor) -> Tensor:
        """Returns x W^T + bias in float32 (float64 for float64), without autocast."""
        dtype = wide_dtype(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(dtype), self.weight.to(dtype), bias)


class _PooledHead(_LinearHead):
    """Reads one vector per example: the pooled row, or the sum of the pooled rows of its k sequences."""

    def features(self, model: Model, hidden: Tensor, rows: Tensor) -> Tensor:
        """Returns (B, E) for rows (B,) or (B, k)."""
        pooled = model.pooled(hidden, rows)
        return pooled if rows.ndim == 1 else pooled.sum(1)

    def dropped(self, model: Model, hidden: Tensor, rows: Tensor, layout: Layout, seeds: Seeds) -> Tensor:
        """Returns the logits (B, units) of training. Row n of the mask is that of example n of the whole batch."""
        first = _first_example(layout, rows)
        return self.linear(self.drop(self.features(model, hidden, rows), seeds, first))


class ClassificationHead(_PooledHead):
    """Predicts the class of a text or a pair of texts: softmax(dropout(pooled) W^T + bias) (BERT, section 4.1).

    targets: rows (B,) int64, the row of `hidden.flatten(0, -2)` to read, or (B, k): the pooled rows of the k sequences
    of an example are added (GPT-1, section 3.3, similarity: both orders); labels (B,) int64, or -100 for an example
    that is ignored.

    Args:
        hidden, classes: E, and the number of classes.
        dropout: probability for the pooled vector; both papers use 0.1.
        bias: whether the linear layer has a bias.
        class_weights: the weight of each class in the mean loss, as in `torch.nn.CrossEntropyLoss`. It is not stored
            with the model's weights.
        backend: which backend runs the dropout: "auto", "reference", "cpu", "triton" or "cuda".
    """

    targets = ("rows", "labels")

    def __init__(
        self,
        hidden: int,
        classes: int,
        *,
        dropout: float = 0.1,
        bias: bool = True,
        class_weights: Sequence[float] | None = None,
        backend: str = "auto",
    ):
        super().__init__(hidden, classes, dropout=dropout, bias=bias, backend=backend)
        if class_weights is not None and len(class_weights) != classes:
            raise ValueError(f"class_weights must have {classes} numbers, one per class, got {len(class_weights)}")
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def check(self, model: Model, tokens: Tensor, *, rows: Tensor, labels: Tensor, layout: Layout) -> None:
        _check_rows(model, tokens, rows, (1, 2))
        model.check_ids("labels", labels, rows.shape[:1], self.out_features, ignore=IGNORED)

    def loss(
        self, model: Model, hidden: Tensor, *, rows: Tensor, labels: Tensor, layout: Layout, seeds: Seeds = ()
    ) -> Tensor:
        """Returns the mean loss over the examples that have a label, weighted by their classes."""
        return _mean_cross_entropy(self.dropped(model, hidden, rows, layout, seeds), labels, self.class_weights)

    def logits(self, model: Model, hidden: Tensor, rows: Tensor) -> Tensor:
        """Returns logits (B, classes), float32, without dropout."""
        return self.linear(self.features(model, hidden, rows))


class RegressionHead(_PooledHead):
    """Predicts a number for a text or a pair of texts by dropout(pooled) w + bias and its squared error (STS-B).

    targets: rows as in `ClassificationHead`; scores (B,) float32, the numbers. Arguments as in `ClassificationHead`.
    """

    targets = ("rows", "scores")

    def __init__(self, hidden: int, *, dropout: float = 0.1, bias: bool = True, backend: str = "auto"):
        super().__init__(hidden, 1, dropout=dropout, bias=bias, backend=backend)

    def check(self, model: Model, tokens: Tensor, *, rows: Tensor, scores: Tensor, layout: Layout) -> None:
        _check_rows(model, tokens, rows, (1, 2))
        name = type(model).__name__
        if not isinstance(scores, Tensor) or scores.dtype not in (torch.float32, torch.float64):
            given = dtype_name(scores.dtype) if isinstance(scores, Tensor) else type(scores).__name__
            raise TypeError(f"{name}: scores must be float32, got {given}")
        if scores.shape != rows.shape[:1]:
            raise ValueError(f"{name}: scores must have shape {tuple(rows.shape[:1])}, got {tuple(scores.shape)}")

    def loss(
        self, model: Model, hidden: Tensor, *, rows: Tensor, scores: Tensor, layout: Layout, seeds: Seeds = ()
    ) -> Tensor:
        """Returns the mean squared error."""
        predicted = self.dropped(model, hidden, rows, layout, seeds)[:, 0]
        return F.mse_loss(predicted, scores.to(predicted.dtype))

    def logits(self, model: Model, hidden: Tensor, rows: Tensor) -> Tensor:
        """Returns the predicted numbers (B,), float32, without dropout."""
        return self.linear(self.features(model, hidden, rows))[:, 0]


class ChoiceHead(_LinearHead):
    """Chooses one of C sequences by a softmax over their scores, dropout(pooled) w + bias (SWAG, RACE, Story Cloze).

    targets: rows (B, C) int64, the row of `hidden.flatten(0, -2)` to read for each choice; choice_labels (B,) int64 in
    [0, C), or -100 for an example that is ignored.

    Args:
        hidden: E.
        dropout: probability for the pooled vectors.
        shared_dropout: whether the choices of an example have one mask (GPT-1's code), or each its own (BERT's).
        bias: whether the score has a bias, whose gradient is always 0.
        backend: which backend runs the dropout.
    """

    targets = ("rows", "choice_labels")

    def __init__(
        self,
        hidden: int,
        *,
        dropout: float = 0.1,
        shared_dropout: bool = False,
        bias: bool = True,
        backend: str = "auto",
    ):
        super().__init__(hidden, 1, dropout=dropout, bias=bias, backend=backend)
        self.shared_dropout = shared_dropout

    def check(self, model: Model, tokens: Tensor, *, rows: Tensor, choice_labels: Tensor, layout: Layout) -> None:
        _check_rows(model, tokens, rows, (2,))
        model.check_ids("choice_labels", choice_labels, rows.shape[:1], rows.shape[1], ignore=IGNORED)

    def loss(
        self, model: Model, hidden: Tensor, *, rows: Tensor, choice_labels: Tensor, layout: Layout, seeds: Seeds = ()
    ) -> Tensor:
        """Returns the mean loss over the examples that have a label."""
        pooled = model.pooled(hidden, rows)
        if self.shared_dropout:
            first = _first_example(layout, rows)
            pooled = torch.stack([self.drop(choice, seeds, first) for choice in pooled.unbind(1)], 1)
        else:
            pooled = self.drop(pooled, seeds, layout.first_sequence)
        return _mean_cross_entropy(self.linear(pooled)[..., 0], choice_labels)

    def logits(self, model: Model, hidden: Tensor, rows: Tensor) -> Tensor:
        """Returns logits (B, C), float32, without dropout."""
        return self.linear(model.pooled(hidden, rows))[..., 0]


class TaggingHead(_LinearHead):
    """Predicts a tag for tokens: softmax(dropout(hidden) W^T + bias), without a pooler (BERT, section 5.3, NER).

    targets: tag_targets of the shape of tokens, int64: the tag of a token, or -100 for one that is ignored (padding,
    [CLS], [SEP], and all but the first piece of a word).

    Args:
        hidden, tags: E, and the number of tags. The others are as in `ClassificationHead`.
    """

    targets = ("tag_targets",)

    def __init__(self, hidden: int, tags: int, *, dropout: float = 0.1, bias: bool = True, backend: str = "auto"):
        super().__init__(hidden, tags, dropout=dropout, bias=bias, backend=backend)

    def check(self, model: Model, tokens: Tensor, *, tag_targets: Tensor, layout: Layout) -> None:
        model.check_ids("tag_targets", tag_targets, tokens.shape, self.out_features, ignore=IGNORED)

    def loss(self, model: Model, hidden: Tensor, *, tag_targets: Tensor, layout: Layout, seeds: Seeds = ()) -> Tensor:
        """Returns the mean loss over the tokens that have a tag. The mask has the rows of the trunk's masks."""
        logits = self.linear(self.drop(hidden, seeds, layout.first_row))
        return _mean_cross_entropy(logits.flatten(0, -2), tag_targets.flatten())

    def logits(self, model: Model, hidden: Tensor) -> Tensor:
        """Returns logits (..., tags) for hidden states (..., E), float32, without dropout."""
        return self.linear(hidden)


class SpanHead(_LinearHead):
    """Predicts where a span starts and ends: a softmax over the positions of a sequence each (BERT, section 4.2).

    Only the valid tokens of a sequence take part. In transformers' BertForQuestionAnswering the padding takes part, so
    there a loss depends on how far the batch is padded. There is no dropout before the linear layer, as in BERT's code.

    targets: span_starts, span_ends (B,) int64: positions in the sequence, or -100 for one that is ignored. In SQuAD 2.0
    a question without an answer has 0 for both, the position of [CLS].
    """

    targets = ("span_starts", "span_ends")

    def __init__(self, hidden: int):
        super().__init__(hidden, 2, dropout=0.0, bias=True, backend="auto")

    def check(self, model: Model, tokens: Tensor, *, span_starts: Tensor, span_ends: Tensor, layout: Layout) -> None:
        lengths = layout.sequence_lengths(tokens)
        for name, positions in (("span_starts", span_starts), ("span_ends", span_ends)):
            model.check_ids(name, positions, lengths.shape, model.config.context, ignore=IGNORED)
            if positions.device.type == "cpu" and not torch.compiler.is_compiling():
                _check_within(f"{type(model).__name__}: {name}", positions, lengths)

    def loss(self, model: Model, hidden: Tensor, *, span_starts: Tensor, span_ends: Tensor, layout: Layout) -> Tensor:
        """Returns half the sum of two mean losses: of the starts, and of the ends."""
        scores, valid = layout.by_sequence(self.linear(hidden))
        if valid is not None:
            # exp of the least float is 0. It is not -inf, so that a sequence without tokens makes no NaN.
            scores = scores.masked_fill(~valid[..., None], torch.finfo(scores.dtype).min)
        starts, ends = scores.unbind(-1)
        return (_mean_cross_entropy(starts, span_starts) + _mean_cross_entropy(ends, span_ends)) / 2

    def logits(self, model: Model, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logits of starts and of ends, each (B, S), or (T,) for packed hidden states (T, E); float32.

        They are not masked: those past a sequence's length have no meaning.
        """
        starts, ends = self.linear(hidden).unbind(-1)
        return starts, ends


class SequenceLMHead(CausalLMHead):
    """Computes the auxiliary loss of GPT-1's fine-tuning, lambda * L1 (section 3.2, equation 5), as its code does.

    The loss is a mean over the predicted tokens of a sequence, then over sequences (those with a target), times
    `weight`. So in a short sequence a token weighs more. A model's "loss" is then L3 = L2 + lambda * L1, and
    `losses["lm"]` is lambda * L1. With weight 0 nothing is computed, and the loss is 0.

    targets (B, S) or packed (T,) int64: the token after each position, or -100 for a position that is not predicted. A
    batch without them costs nothing.
    """

    reads_layout = True

    def __init__(self, *, weight: float = 0.5, backend: str = "auto"):
        super().__init__(backend=backend)
        if not weight >= 0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        self.weight = weight

    def check(self, model: Model, tokens: Tensor, *, targets: Tensor, layout: Layout) -> None:
        super().check(model, tokens, targets=targets)

    def loss(self, model: Model, hidden: Tensor, *, targets: Tensor, layout: Layout) -> Tensor:
        """Returns weight * the mean over sequences of the mean loss of a sequence."""
        dtype = wide_dtype(hidden)
        if not self.weight:
            return hidden.new_zeros((), dtype=dtype)
        counts = layout.sequence_totals((targets != IGNORED).long())
        shares = counts.clamp(min=1).to(dtype).reciprocal()  # they add up to the number of sequences with a target
        return self.weight * self.cross_entropy(hidden, model.embedding.word, targets, row_weights=shares)

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


def _first_example(layout: Layout, rows: Tensor) -> Tensor | None:
    """Returns the number of the first example in the whole batch; an example has as many sequences as rows."""
    first = layout.first_sequence
    return first if first is None or rows.ndim == 1 else first // rows.shape[1]


def _mean_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns the mean over the rows (N, C) whose target (N,) is not -100, weighted by `weights` (C,); 0 if none is."""
    weights = None if weights is None else weights.to(logits.dtype)
    losses = F.cross_entropy(logits, targets, weights, ignore_index=IGNORED, reduction="sum")
    counted = targets != IGNORED
    each = counted.to(logits.dtype) if weights is None else weights[targets.where(counted, 0)].where(counted, 0.0)
    total = each.sum()
    return losses / total.where(total != 0, 1.0)


def _check_rows(model: Model, tokens: Tensor, rows: Tensor, dimensions: tuple[int, ...]) -> None:
    shapes = {1: "(B,)", 2: "(B, k)"}
    expected = " or ".join(shapes[n] for n in dimensions)
    name = type(model).__name__
    if not isinstance(rows, Tensor):
        raise TypeError(f"{name}: rows must be a tensor of int64 of shape {expected}, got {type(rows).__name__}")
    if rows.ndim not in dimensions:
        raise ValueError(f"{name}: rows must have shape {expected}, got {tuple(rows.shape)}")
    model.check_ids("rows", rows, rows.shape, tokens.numel())


def _check_within(name: str, positions: Tensor, lengths: Tensor) -> None:
    """Raises ValueError for a position past the end of its sequence."""
    beyond = positions >= lengths
    if beyond.any():
        i = int(beyond.nonzero()[0])
        raise ValueError(
            f"{name} must lie in their sequences, got {positions[i]} in sequence {i} of {lengths[i]} tokens"
        )
