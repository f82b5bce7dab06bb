"""The unigram and bigram models against their definitions, computed by loops."""

from __future__ import annotations

import math
from itertools import pairwise

import corpora
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlm.data import prepare
from fastlm.evaluate import ngrams
from fastlm.evaluate.ngrams import ngram_losses, ngram_scores


class ByHand:
    """Computes p(b) and p(b | a) from counts in dictionaries."""

    def __init__(self, train: list[int], vocab_size: int):
        self.train, self.vocab_size = train, vocab_size

    def unigram(self, b: int) -> float:
        return (self.train.count(b) + 1) / (len(self.train) + self.vocab_size)

    def seen(self, a: int) -> int:
        return self.train[:-1].count(a)

    def conditional(self, a: int, b: int) -> float:
        pairs = list(pairwise(self.train))
        return pairs.count((a, b)) / self.seen(a) if self.seen(a) else 0.0

    def bucket(self, a: int) -> int:
        return self.seen(a).bit_length()


def by_hand(train: list[int], before: list[int], after: list[int], vocab_size: int) -> dict[str, float]:
    size = max(2, int(0.05 * len(train)))
    rest, held_out = ByHand(train[:-size], vocab_size), train[-size:]
    weights = {bucket: 0.5 for bucket in range(64)}
    for _ in range(100):
        shares: dict[int, list[float]] = {bucket: [1.0, 0.0] for bucket in weights}
        for a, b in pairwise(held_out):
            weight = weights[rest.bucket(a)]
            ours, theirs = weight * rest.conditional(a, b), (1 - weight) * rest.unigram(b)
            shares[rest.bucket(a)].append(ours / (ours + theirs))
        weights = {bucket: sum(found) / len(found) for bucket, found in shares.items()}
    weights[0] = 0.0
    model, losses = ByHand(train, vocab_size), {"unigram": [], "bigram": []}
    for a, b in zip(before, after, strict=True):
        weight = weights[model.bucket(a)]
        losses["unigram"].append(-math.log(model.unigram(b)))
        losses["bigram"].append(-math.log(weight * model.conditional(a, b) + (1 - weight) * model.unigram(b)))
    return {name: sum(found) / len(found) for name, found in losses.items()}


@corpora.no_deadline
@given(
    train=st.lists(st.integers(0, 5), min_size=4, max_size=90),
    text=st.lists(st.integers(0, 6), min_size=2, max_size=20),
    slice_size=st.integers(1, 100),
)
def test_as_by_hand(train, text, slice_size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "_SLICE", slice_size)
        found = ngram_losses(np.array(train, np.uint16), np.array(text[:-1]), np.array(text[1:]), 7)
    assert found == pytest.approx(by_hand(train, text[:-1], text[1:], 7), rel=1e-9)


def test_probabilities_sum_to_one():
    generator = np.random.default_rng(0)
    train = generator.integers(0, 9, 400) ** 2 // 9  # uneven frequencies; some of the 12 entries never occur
    for a in range(12):
        losses = [ngram_losses(train, np.array([a]), np.array([b]), 12) for b in range(12)]
        for name in ("unigram", "bigram"):
            assert sum(math.exp(-loss[name]) for loss in losses) == pytest.approx(1, rel=1e-12)


def test_known_sources():
    generator = np.random.default_rng(1)
    uniform = generator.integers(0, 50, 200_000)
    losses = ngram_losses(uniform, uniform[:9999], uniform[1:10_000], 50)
    assert losses["unigram"] == pytest.approx(math.log(50), abs=2e-3)
    assert losses["bigram"] == pytest.approx(math.log(50), abs=2e-2)
    cycle = np.arange(100_000) % 50
    losses = ngram_losses(cycle, cycle[:9999], cycle[1:10_000], 50)
    assert losses["unigram"] == pytest.approx(math.log(50), abs=1e-2) and losses["bigram"] < 1e-2


def test_batches_as_they_come():
    generator = np.random.default_rng(2)
    train, rows = generator.integers(0, 30, 5000), generator.integers(0, 30, (4, 17))
    assert ngram_losses(train, rows[:, :-1], rows[:, 1:], 30) == ngram_losses(
        train, rows[:, :-1].ravel(), rows[:, 1:].ravel(), 30
    )


def test_scores_of_a_corpus(tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(corpora.chapters()))
    shards = prepare(tmp_path / "text.txt", tmp_path / "shards", corpora.tokenizer("bpe"))
    scores = ngram_scores(shards)
    validation = shards.split("validation")
    for score in scores.values():
        assert score.perplexity == math.exp(score.loss)
        bits = score.loss * len(validation.tokens) / math.log(2)
        assert score.bits_per_byte == pytest.approx(bits / validation.bytes)
    assert 600 > scores["unigram"].perplexity > 1.5 * scores["bigram"].perplexity
