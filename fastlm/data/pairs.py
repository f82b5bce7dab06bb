"""BERT's batches: sentence pairs, masked (Devlin et al. 2019, section 3.1 and appendix A.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastlm.data.corpus import DataError
from fastlm.data.sampling import EXAMPLE, check_seed, generator, shuffled
from fastlm.data.shards import Shards, Split

SHORT = 0.1  # of the pairs are shortened, so that fine-tuning's short inputs are no surprise
MASKED, RANDOM = 0.8, 0.1  # of the predicted positions; the others keep their token
_SCALARS = 5  # uniform numbers an example, before those for its positions


class SentencePairs:
    """Pairs [CLS] A [SEP] B [SEP] of at most `sequence_length` S tokens, `batch_size` B at a time, for BERT.

    A document is cut, once and for all, into chunks of the fewest whole sentences (at least two) that hold S - 3
    tokens; its last chunk may hold fewer. An epoch reads the chunks in a random order. Each time a chunk is split at
    a random sentence's end: A is its first part, and B, by a fair coin, its second part (label 0, is next) or as much
    text from a random place in another document (label 1). Pairs that are too long lose tokens of the longer part, at
    its front or back by a coin each. A tenth of the pairs is shortened to a random length.

    The original code differs in two ways. After a random B it goes back, to use the chunk's second part in the next
    pair; here that part waits for an epoch in which the coin falls the other way, which lets any batch be made directly
    and leaves no sentence out in the long run, as splits and coins are new each epoch. And its random B runs on from
    a random sentence of an evenly drawn document, however little is left there, so that a short B gives the label
    away; here the sentence is drawn evenly from all other documents, and B is about as long as what it replaces.

    `masked_fraction` of the tokens are predicted, never [CLS] or [SEP]: 80% of them become [MASK], 10% a token drawn
    evenly from the whole vocabulary (specials too, as in the original), 10% stay. All draws are new each epoch.
    `batch(step)` depends on (seed, step) alone.

    pairs: number an epoch. batches_per_epoch: whole batches among them, at least 1. predictions: P, positions a pair.
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
        self._chunks = _chunks(self._split, sequence_length - 3)
        self.pairs = len(self._chunks)
        if not self.pairs:
            raise DataError(f"split: no {split} document of {shards.path} has two sentences, which a pair needs")
        self.batches_per_epoch = max(1, self.pairs // batch_size)

    def batch(self, step: int) -> dict[str, Tensor]:
        """The batch of a step (from 0), named as BERT.forward's arguments.

        "tokens", "segments" (B, S) int64, padded with [PAD] and 0; "lengths" (B,) int32; "mlm_positions",
        "mlm_targets" (B, P) int64, ascending and padded with 0 and -100; "next_sentence_labels" (B,) int64.
        """
        start = step * self.batch_size
        _, items = shuffled(start, self.batch_size, self.pairs, self.seed)
        streams = [generator(self.seed, EXAMPLE, start + i) for i in range(self.batch_size)]
        uniform = np.stack([s.random(_SCALARS + self.sequence_length + 2 * self.predictions) for s in streams])
        scalars, per_token, per_prediction = np.split(uniform, [_SCALARS, _SCALARS + self.sequence_length], axis=1)
        first, second, labels = self._pair(items, scalars)
        first, second = _truncate(first, second, self.sequence_length - 3, streams)
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
        """The token spans of A and B before truncation, and the labels."""
        short, target, cut, coin, place = scalars.T
        offsets = self._split.sentences
        begin, end, document = self._chunks[items].T
        length = 2 + (target * (self.sequence_length - 4)).astype(np.int64)  # in [2, S - 3]
        shorter = np.searchsorted(offsets, offsets[begin] + length)
        end = np.where(short < SHORT, np.clip(shorter, begin + 2, end), end)
        middle = begin + 1 + (cut * (end - begin - 1)).astype(np.int64)
        labels = (coin < 0.5).astype(np.int64)
        other_begin, other_end = self._elsewhere(document, offsets[end] - offsets[middle], place)
        b_begin, b_end = np.where(labels, other_begin, middle), np.where(labels, other_end, end)
        return _spans(offsets, begin, middle), _spans(offsets, b_begin, b_end), labels

    def _elsewhere(self, document: np.ndarray, length: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sentences [begin, end) of other documents that hold `length` tokens (fewer in a document that is shorter)."""
        offsets, documents = self._split.sentences, self._split.documents
        own_begin, own_end = documents[document], documents[document + 1]
        drawn = (place * (documents[-1] - (own_end - own_begin))).astype(np.int64)
        drawn = np.where(drawn >= own_begin, drawn + own_end - own_begin, drawn)
        other = np.searchsorted(documents, drawn, side="right") - 1
        latest = np.searchsorted(offsets, offsets[documents[other + 1]] - length, side="right") - 1
        begin = np.maximum(documents[other], np.minimum(drawn, latest))
        end = np.minimum(np.searchsorted(offsets, offsets[begin] + length), documents[other + 1])
        return begin, end

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


def _spans(offsets: np.ndarray, begin: np.ndarray, end: np.ndarray) -> _Spans:
    return _Spans(offsets[begin], offsets[end] - offsets[begin])


def _truncate(first: _Spans, second: _Spans, most: int, streams: list[np.random.Generator]) -> tuple[_Spans, _Spans]:
    """What is left of A and B when the longer (B if equal) loses a token until both together hold at most `most`."""
    half_a, half_b = most - most // 2, most // 2
    size_a = np.minimum(first.size, np.maximum(half_a, most - second.size))
    size_b = np.minimum(second.size, np.maximum(half_b, most - first.size))
    return _cut(first, size_a, streams), _cut(second, size_b, streams)


def _cut(spans: _Spans, size: np.ndarray, streams: list[np.random.Generator]) -> _Spans:
    excess = spans.size - size
    front = np.array([s.binomial(e, 0.5) if e else 0 for s, e in zip(streams, excess.tolist(), strict=True)], np.int64)
    return _Spans(spans.begin + front, size)


def _chunks(split: Split, tokens: int) -> np.ndarray:
    """(chunks, 3) int64: the sentences [begin, end) of each chunk, and its document; all documents advance at once."""
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
    chunks = np.concatenate(found)
    return chunks[np.argsort(chunks[:, 0], kind="stable")]
