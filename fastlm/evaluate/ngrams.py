"""N-gram baselines: unigram and interpolated bigram models of the same tokens, which a model should beat."""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import numpy as np

from fastlm.data.shards import Shards

_SLICE = 1 << 22  # tokens counted at a time
# The weights are fitted on the end of the training text: this fraction of it, but at most this number of tokens.
_HELD_OUT, _MAX_HELD_OUT = 0.05, 1 << 20
_ITERATIONS = 100  # of expectation maximisation


class Score(NamedTuple):
    """Holds loss (nats per token), perplexity (e^loss) and bits_per_byte (bits per UTF-8 byte of the text)."""

    loss: float
    perplexity: float
    bits_per_byte: float


def score(loss: float, tokens: int, text_bytes: int) -> Score:
    """Returns the Score of a text, from its mean loss in nats per token, its tokens and its UTF-8 bytes."""
    perplexity = math.exp(loss) if loss < math.log(sys.float_info.max) else math.inf
    return Score(loss, perplexity, loss / math.log(2) * tokens / text_bytes)


def ngram_scores(shards: Shards) -> dict[str, Score]:
    """Scores both models of the training split on the validation split: {"unigram": ..., "bigram": ...}."""
    validation = shards.split("validation")
    text = np.asarray(validation.tokens, np.int64)
    losses = ngram_losses(shards.split("train").tokens, text[:-1], text[1:], shards.vocab_size)
    return {name: score(loss, len(validation.tokens), validation.bytes) for name, loss in losses.items()}


def ngram_losses(train: np.ndarray, before: np.ndarray, after: np.ndarray, vocab_size: int) -> dict[str, float]:
    """Returns the mean loss, in nats per token, of predicting `after` from `before` by the n-gram models of `train`.

    `before` and `after` are integers of one shape, such as the tokens and targets of a batch. c counts in `train`.

    Unigram: p(b) = (c(b) + 1) / (N + V), which is never 0. Bigram (Jelinek and Mercer 1980):

        p(b | a) = l c(a b) / c(a) + (1 - l) p(b)

    with one weight l per power of two of c(a). The weights are fitted by expectation maximisation on the last 5% of the
    training tokens (at most 2^20), with counts of the other training tokens. The losses then use counts of all training
    tokens. Memory grows with V and the number of pairs (before, after), not with `train`.
    """
    held_out = np.asarray(train[-max(2, min(int(_HELD_OUT * len(train)), _MAX_HELD_OUT)) :], np.int64)
    rest = train[: len(train) - len(held_out)]
    weights = _fit(_Counts(rest, held_out[:-1], held_out[1:], vocab_size))
    counts = _Counts(train, np.ravel(before).astype(np.int64), np.ravel(after).astype(np.int64), vocab_size)
    mixed = weights[counts.bucket] * counts.conditional + (1 - weights[counts.bucket]) * counts.unigram
    return {"unigram": -float(np.log(counts.unigram).mean()), "bigram": -float(np.log(mixed).mean())}


def most_frequent(train: np.ndarray, vocab_size: int) -> int:
    """Returns the most frequent token of `train`, the smallest one on a tie."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(train), _SLICE):
        counts += np.bincount(train[start : start + _SLICE], minlength=vocab_size)
    return int(counts.argmax())


class _Counts:
    """Holds the values that the two models need for each pair (a, b) of tokens, from counts of `train`.

    unigram: p(b). conditional: c(a b) / c(a), or 0 if a was never seen. bucket: 1 + floor(log2 c(a)), or 0.
    """

    def __init__(self, train: np.ndarray, before: np.ndarray, after: np.ndarray, vocab_size: int):
        pairs, pair = np.unique(before * vocab_size + after, return_inverse=True)
        single, double = np.zeros(vocab_size, np.int64), np.zeros(len(pairs), np.int64)
        for start in range(0, len(train), _SLICE):
            tokens = np.asarray(
                train[start : start + _SLICE + 1], np.int64
            )  # one more: the successor of the last token
            single += np.bincount(tokens[:_SLICE], minlength=vocab_size)
            codes = tokens[:-1] * vocab_size + tokens[1:]
            found = np.minimum(np.searchsorted(pairs, codes), len(pairs) - 1)
            double += np.bincount(found[pairs[found] == codes], minlength=len(pairs))
        contexts = single.copy()
        if len(train):
            contexts[train[-1]] -= 1  # nothing follows the last token
        self.unigram = (single[after] + 1) / (len(train) + vocab_size)
        self.conditional = double[pair] / np.maximum(contexts[before], 1)
        self.bucket = np.frexp(contexts[before])[1]


def _fit(counts: _Counts) -> np.ndarray:
    """Fits the weight of each bucket. One pseudo-count for each model keeps the weights between 0 and 1."""
    size = np.iinfo(np.int64).bits
    weights = np.full(size, 0.5)
    seen = np.bincount(counts.bucket, minlength=size)
    for _ in range(_ITERATIONS):
        bigram = weights[counts.bucket] * counts.conditional
        posterior = bigram / (bigram + (1 - weights[counts.bucket]) * counts.unigram)
        weights = (np.bincount(counts.bucket, posterior, minlength=size) + 1) / (seen + 2)
    weights[0] = 0  # an unseen context gives no information
    return weights
