"""BERT's batches: sentence pairs, masked (Devlin et al. 2019, section 3.1 and appendix A.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastlm.data.corpus import DataError
from fastlm.data.sampling import CUT, EXAMPLE, check_seed, generators, shuffled
from fastlm.data.shards import Shards, Split

SHORT = 0.1  # of the pairs are shortened, so that fine-tuning's short inputs are no surprise
MASKED, RANDOM = 0.8, 0.1  # of the predicted positions; the others keep their token
_SCALARS = 5  # uniform numbers per example, before those for its positions
_CANDIDATES = 64  # places that a random B may begin at; one that holds whole sentences of its size is taken

_LONE_DOCUMENTS, _LONE_TOKENS = 0.5, 0.1  # in documents of one sentence, above which the user is warned
_JOIN = "if a blank line ends only a paragraph there, give --document file; else join a document's sentences"


class SentencePairs:
    """Pairs [CLS] A [SEP] B [SEP] of at most `sequence_length` S tokens, `batch_size` B at a time, for BERT.

    A document is cut, once and for all, into passages of the fewest whole sentences (at least two) that hold S - 3
    tokens; its last passage may hold fewer. An epoch reads the passages in a random order. Each time a passage is split
    at a random sentence's end: A is its first part, and B, by a fair coin, its second part (label 0, is next) or as
    many tokens from a random place in another document (label 1). Pairs that are too long lose tokens of the longer
    part, at its front or back by a coin each. A tenth of the pairs is shortened to a random length.

    Lengths are drawn without knowing the label: a random B has exactly as many tokens as the part that it replaces, so
    A's, B's and the pair's length tell nothing about the label. A random B starts at a sentence's start, and ends at a
    sentence's end if one of 64 sentences from the random place on starts a run of whole sentences of that size. If none
    does, B ends before a sentence's end in pairs of either label: that of label 0 loses a token to an eighth of it.

    The original code (create_pretraining_data.py) differs in two ways. After a random B it goes back, to use the
    passage's second part in the next pair. Here that part waits for an epoch in which the coin falls the other way,
    which lets any batch be made directly and leaves no sentence out in the long run, as splits and coins are new each
    epoch. And its random B runs on from a random sentence of an evenly drawn document until S - 3 tokens are reached or
    the document ends. Measured on the bundled novels with 4096 entries, at S = 64, 128 and 512: 61%, 55% and 54% of its
    pairs are random (a lone sentence always gets a random B), and of as many pairs of either label, lengths alone tell
    56%, 55% and 55%; of pairs that do not fill S, 57%.

    `masked_fraction` of the tokens are predicted, never [CLS] or [SEP]: 80% of them become [MASK], 10% a token drawn
    evenly from the whole vocabulary (specials too, as in the original), 10% stay. All draws are new each epoch.
    `batch(step)` depends on (seed, step) alone.

    pairs: number per epoch. batches_per_epoch: whole batches among them, at least 1. predictions: P, positions per
    pair. warnings: sentences that tell what about the documents a user should know before training.
    """

    def __init__(
        self,
        shards: Shards,
        split: str,
        sequence_length: int,
        batch_size: int,
        seed: int,
        masked_fraction: float = 0.15,
    ):
        if sequence_length < 5:
            raise ValueError(f"sequence_length: at least 5 expected ([CLS] A [SEP] B [SEP]), got {sequence_length}")
        if batch_size < 1:
            raise ValueError(f"batch_size: at least 1 expected, got {batch_size}")
        if not 0 < masked_fraction < 1:
            raise ValueError(f"masked_fraction: above 0 and below 1 expected, got {masked_fraction}")
        if shards.kind != "wordpiece":
            raise DataError(
                f"shards: {shards.path} is of a {shards.kind} tokenizer; sentence pairs need a wordpiece one"
            )
        self._split = shards.split(split)
        if len(self._split.documents) < 3:
            raise DataError(
                f"split: {shards.path} has one {split} document; sentence pairs need two or more, "
                "so more files, or document='blank-line'"
            )
        self.sequence_length, self.batch_size, self.seed = sequence_length, batch_size, check_seed(seed)
        self.masked_fraction = masked_fraction
        self.predictions = math.ceil(round(masked_fraction * sequence_length, 9))
        self._vocab_size, self._specials = shards.vocab_size, shards.specials
        self._passages = _passages(self._split, sequence_length - 3)
        self._by_size = _DocumentsBySize(self._split)
        self.pairs = len(self._passages)
        if not self.pairs:
            raise DataError(
                f"split: no {split} document of {shards.path} has two sentences, which a pair needs; {_JOIN}"
            )
        self.batches_per_epoch = max(1, self.pairs // batch_size)
        self.warnings = _lone_sentence_warnings(self._split, shards.path, self.pairs)

    def batch(self, step: int) -> dict[str, Tensor]:
        """The batch of a step (from 0), named as BERT.forward's arguments.

        "tokens", "segments" (B, S) int64, padded with [PAD] and 0; "lengths" (B,) int32; "mlm_positions",
        "mlm_targets" (B, P) int64, ascending and padded with 0 and -100; "next_sentence_labels" (B,) int64.
        """
        start = step * self.batch_size
        _, items = shuffled(start, self.batch_size, self.pairs, self.seed)
        positions = range(start, start + self.batch_size)
        uniform = np.empty((self.batch_size, _SCALARS + self.sequence_length + 2 * self.predictions))
        for stream, row in zip(generators(self.seed, EXAMPLE, positions), uniform, strict=True):
            stream.random(out=row)
        scalars, per_token, per_prediction = np.split(uniform, [_SCALARS, _SCALARS + self.sequence_length], axis=1)
        first, second, labels = self._pair(items, scalars)
        first, second = _truncate(first, second, self.sequence_length - 3, generators(self.seed, CUT, positions))
        tokens, segments, lengths = self._layout(first, second)
        positions, targets = self._mask(tokens, first.size, lengths, per_token, per_prediction)
        arrays = {
            "tokens": tokens,
            "segments": segments,
            "lengths": lengths.astype(np.int32),
            "mlm_positions": positions,
            "mlm_targets": targets,
            "next_sentence_labels": labels,
        }
        return {name: torch.from_numpy(value) for name, value in arrays.items()}

    def _pair(self, items: np.ndarray, scalars: np.ndarray) -> tuple[_Spans, _Spans, np.ndarray]:
        """Draws the token spans of A and B before truncation, and the labels. No size depends on the label."""
        short, target, cut, coin, place = scalars.T
        offsets = self._split.sentences
        begin, end, document = self._passages[items].T
        length = 2 + (target * (self.sequence_length - 4)).astype(np.int64)  # in [2, S - 3]
        shorter = np.searchsorted(offsets, offsets[begin] + length)
        end = np.where(short < SHORT, np.clip(shorter, begin + 2, end), end)
        # B is no longer than another document can replace.
        earliest = np.searchsorted(offsets, offsets[end] - self._by_size.second_largest)
        earliest = np.clip(earliest, begin + 1, end - 1)
        middle = earliest + (cut * (end - earliest)).astype(np.int64)
        size = np.minimum(offsets[end] - offsets[middle], self._by_size.second_largest)
        # Where a random B must end within a sentence, a true one does so too.
        elsewhere, surplus = self._elsewhere(document, size, place)
        size = np.maximum(size - np.minimum(surplus, size // 8 + 1), 1)
        labels = (coin < 0.5).astype(np.int64)
        first = _Spans(offsets[begin], offsets[middle] - offsets[begin])
        return first, _Spans(np.where(labels, elsewhere, offsets[middle]), size), labels

    def _elsewhere(self, document: np.ndarray, size: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Finds where `size` tokens of another document begin, and by how many tokens they miss a sentence's end.

        Takes the best of _CANDIDATES sentences from a random one on (the first sentence comes after the last one), and
        of the first sentence in the random one's document.
        """
        offsets, documents = self._split.sentences, self._split.documents
        drawn, home = self._by_size.draw(document, size, place)
        window = (drawn[:, None] + np.arange(_CANDIDATES)) % (len(offsets) - 1)
        candidates = np.column_stack([window, documents[home]])
        homes = np.searchsorted(documents, candidates, side="right") - 1
        begin = offsets[candidates]
        end = begin + size[:, None]
        unfit = (homes == document[:, None]) | (end > offsets[documents[homes + 1]])
        surplus = offsets[np.searchsorted(offsets, np.minimum(end, offsets[-1]))] - end
        best = np.where(unfit, np.iinfo(np.int64).max, surplus).argmin(axis=1)[:, None]
        return np.take_along_axis(begin, best, 1)[:, 0], np.take_along_axis(surplus, best, 1)[:, 0]

    def _layout(self, first: _Spans, second: _Spans) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[CLS] A [SEP] B [SEP] [PAD]..., the segments 0 0 0 1 1 0..., and the lengths."""
        column = np.arange(self.sequence_length)
        a_end = 1 + first.size[:, None]
        b_end = a_end + 1 + second.size[:, None]
        in_first, in_second = (column >= 1) & (column < a_end), (column > a_end) & (column < b_end)
        source = np.where(in_first, first.begin[:, None] + column - 1, second.begin[:, None] + column - a_end - 1)
        text = in_first | in_second
        tokens = np.full(text.shape, self._specials["[PAD]"], np.int64)
        tokens[text] = self._split.tokens[source[text]]
        tokens[:, 0] = self._specials["[CLS]"]
        tokens[(column == a_end) | (column == b_end)] = self._specials["[SEP]"]
        segments = ((column > a_end) & (column <= b_end)).astype(np.int64)
        return tokens, segments, b_end[:, 0] + 1

    def _mask(
        self,
        tokens: np.ndarray,
        first_size: np.ndarray,
        lengths: np.ndarray,
        per_token: np.ndarray,
        per_prediction: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose the predicted positions, put [MASK] and random words into `tokens`; return positions and targets."""
        column = np.arange(self.sequence_length)
        a_end, b_end = 1 + first_size[:, None], lengths[:, None] - 1
        maskable = (column >= 1) & (column < b_end) & (column != a_end)
        count = np.clip(np.rint(lengths * self.masked_fraction), 1, self.predictions)[:, None]
        order = np.argsort(np.where(maskable, per_token, 2.0), axis=1)[:, : self.predictions]
        asked = np.arange(self.predictions) < np.minimum(count, maskable.sum(axis=1, keepdims=True))
        positions = np.sort(np.where(asked, order, self.sequence_length), axis=1)
        positions = np.where(asked, positions, 0)
        rows = np.arange(len(tokens))[:, None]
        targets = tokens[rows, positions]
        action, word = np.split(per_prediction, 2, axis=1)
        word = (word * self._vocab_size).astype(np.int64)
        put = np.where(action < MASKED, self._specials["[MASK]"], np.where(action < MASKED + RANDOM, word, targets))
        tokens[np.broadcast_to(rows, asked.shape)[asked], positions[asked]] = put[asked]
        return positions, np.where(asked, targets, -100)


@dataclass
class _Spans:
    """Runs of tokens in the stream: where each begins, and its size."""

    begin: np.ndarray
    size: np.ndarray


class _DocumentsBySize:
    """Draws from the documents of a split that hold a number of tokens, without trying others.

    second_largest: tokens of the second largest document. If any document is left out, another one holds as many.
    """

    def __init__(self, split: Split):
        sizes = np.diff(split.sentences[split.documents])
        self._order = np.argsort(-sizes, kind="stable")
        self._negative_sizes = -sizes[self._order]
        self._rank = np.empty_like(self._order)
        self._rank[self._order] = np.arange(len(sizes))
        sentences = np.diff(split.documents)[self._order]
        self._before = np.concatenate(([0], np.cumsum(sentences)))  # sentences of larger documents
        self._first = split.documents
        self.second_largest = int(sizes[self._order[1]])

    def draw(self, document: np.ndarray, size: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draws a sentence evenly, by `place` in [0, 1), from the other documents that hold `size` tokens.

        Returns the sentences and their documents.
        """
        rank = self._rank[document]
        own_begin, own_end = self._before[rank], self._before[rank + 1]
        last = self._before[np.searchsorted(self._negative_sizes, -size, side="right")]
        drawn = (place * (last - (own_end - own_begin))).astype(np.int64)
        drawn = np.where(drawn >= own_begin, drawn + own_end - own_begin, drawn)
        rank = np.searchsorted(self._before, drawn, side="right") - 1
        home = self._order[rank]
        return self._first[home] + drawn - self._before[rank], home


def _truncate(
    first: _Spans, second: _Spans, most: int, streams: Iterable[np.random.Generator]
) -> tuple[_Spans, _Spans]:
    """Cuts tokens off the longer of A and B (B if equal), at either end by a coin, until both hold `most` in all."""
    half_a, half_b = most - most // 2, most // 2
    size_a = np.minimum(first.size, np.maximum(half_a, most - second.size))
    size_b = np.minimum(second.size, np.maximum(half_b, most - first.size))
    excess = np.stack([first.size - size_a, second.size - size_b], axis=1).tolist()
    front = [[s.binomial(e, 0.5) if e else 0 for e in row] for s, row in zip(streams, excess, strict=True)]
    front_a, front_b = np.array(front, np.int64).T
    return _Spans(first.begin + front_a, size_a), _Spans(second.begin + front_b, size_b)


def _lone_sentence_warnings(split: Split, path: Path, pairs: int) -> list[str]:
    """Returns one sentence if much of the text is in documents of one sentence, else none."""
    lone = np.flatnonzero(np.diff(split.documents) == 1)
    first = split.documents[lone]
    documents = len(lone) / (len(split.documents) - 1)
    tokens = int((split.sentences[first + 1] - split.sentences[first]).sum()) / len(split.tokens)
    if documents <= _LONE_DOCUMENTS and tokens <= _LONE_TOKENS:
        return []
    return [
        f"{path}: {len(lone)} of {len(split.documents) - 1} {split.name} documents ({tokens:.0%} of the tokens) are "
        f"one sentence, which gives no pair, for A and B come from one document; {pairs} pairs are left: {_JOIN}"
    ]


def _passages(split: Split, tokens: int) -> np.ndarray:
    """(passages, 3) int64: the sentences [begin, end) of each, and its document; all documents advance at once."""
    offsets, starts, ends = split.sentences, split.documents[:-1], split.documents[1:]
    document = np.flatnonzero(ends - starts >= 2)
    begin, found = starts[document], [np.empty((0, 3), np.int64)]
    while len(document):
        end = np.searchsorted(offsets, offsets[begin] + tokens)
        end = np.minimum(np.maximum(end, begin + 2), ends[document])
        # A sentence left over at the end of a document takes the one before it along.
        found.append(np.stack([np.minimum(begin, end - 2), end, document], axis=1))
        more = end < ends[document]
        begin, document = end[more], document[more]
    passages = np.concatenate(found)
    return passages[np.argsort(passages[:, 0], kind="stable")]
