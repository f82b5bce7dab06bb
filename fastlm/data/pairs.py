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
from fastlm.data.sampling import EXAMPLE, TRUNCATION, check_seed, generators, shuffled
from fastlm.data.shards import Shards, Split

SHORT = 0.1  # fraction of the pairs that is shortened: inputs are short in fine-tuning
MASKED, RANDOM = 0.8, 0.1  # fractions of the predicted positions; the others keep their token
_SCALARS = 5  # random numbers per pair for its sizes, places and label; those for its positions follow
_CANDIDATES = 64  # sentences that a random B may start with; the best one is taken

# The user is warned if one-sentence documents exceed these fractions of the documents, or of the tokens.
_LONE_DOCUMENTS, _LONE_TOKENS = 0.5, 0.1
_JOIN = "if a blank line ends only a paragraph there, give --document file; else join a document's sentences"


class SentencePairs:
    """Makes BERT's batches: `batch_size` sentence pairs [CLS] A [SEP] B [SEP] of at most S = `sequence_length` tokens.

    Passages. Each document is cut once into passages. A passage is the fewest whole sentences, at least two, that hold
    S - 3 tokens; the last one of a document may hold fewer. An epoch reads each passage once, in a random order.

    Pairs. Each time a passage is read, it is split at the end of a random sentence. A is its first part. A fair coin
    decides what B is:

        label 0 (is next)   the second part of the passage
        label 1 (random)    as many tokens from a random place in another document

    A pair that is too long loses tokens of its longer part; a coin per token takes them from the front or the back. A
    tenth of the pairs is shortened to a random length.

    Lengths do not reveal the label. A random B has exactly as many tokens as the part that it replaces. It starts at a
    sentence's start. It ends at a sentence's end if this is possible from one of 64 candidate starts, those from the
    random place on. If it is not possible, B is shortened for either label, so that it ends inside a sentence: it loses
    1 to n // 8 + 1 of its n tokens.

    Masking. `masked_fraction` of the tokens are predicted, never [CLS] or [SEP]. 80% of these become [MASK], 10% a
    token drawn uniformly from the whole vocabulary (special tokens too, as in the original), and 10% stay.

    All draws are new each epoch. `batch(step)` depends on (seed, step) alone.

    The original code (create_pretraining_data.py) differs in two ways. First, after a random B it uses the passage's
    second part in the next pair. Here that part is read in another epoch, when the coin decides otherwise: so any batch
    can be made directly, and over the epochs no sentence is left out. Second, its random B starts at a random sentence
    of a uniformly drawn document, and continues until the pair holds S - 3 tokens or the document ends. Its lengths
    reveal the label, as measured on the bundled novels with a vocabulary of 4096:

        S                                                          64     128    512
        pairs with a random B (a lone sentence always gets one)    61%    55%    54%
        labels guessed from lengths alone (50% would be chance)    56%    55%    55%

    Among the pairs that do not fill S, 57% of the labels are guessed from the lengths alone.

    pairs: pairs per epoch. batches_per_epoch: whole batches per epoch, at least 1. predictions: P, predicted positions
    per pair. warnings: sentences about the documents that a user should read before training.
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
        """Returns the batch of a step (from 0), by the names of BERT.forward's arguments.

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
        first, second = _truncate(first, second, self.sequence_length - 3, generators(self.seed, TRUNCATION, positions))
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
        """Draws the spans of A and B before truncation, and the labels. No size depends on the label.

        scalars: (pairs, _SCALARS), uniform in [0, 1).
        """
        short, target, cut, coin, place = scalars.T
        offsets = self._split.sentences
        begin, end, document = self._passages[items].T
        length = 2 + (target * (self.sequence_length - 4)).astype(np.int64)  # in [2, S - 3]
        shorter = np.searchsorted(offsets, offsets[begin] + length)
        end = np.where(short < SHORT, np.clip(shorter, begin + 2, end), end)
        # The split is chosen so that some other document holds as many tokens as B.
        earliest = np.searchsorted(offsets, offsets[end] - self._by_size.second_largest)
        earliest = np.clip(earliest, begin + 1, end - 1)
        middle = earliest + (cut * (end - earliest)).astype(np.int64)
        size = np.minimum(offsets[end] - offsets[middle], self._by_size.second_largest)
        # If a random B would end inside a sentence, then the true B is made to end inside one too.
        random_begin, missing = self._random_spans(document, size, place)
        size = np.maximum(size - np.minimum(missing, size // 8 + 1), 1)
        labels = (coin < 0.5).astype(np.int64)
        first = _Spans(offsets[begin], offsets[middle] - offsets[begin])
        return first, _Spans(np.where(labels, random_begin, offsets[middle]), size), labels

    def _random_spans(self, document: np.ndarray, size: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Finds spans of `size` tokens in other documents; returns their starts, and the tokens that each misses.

        A span misses the tokens after it that would complete its last sentence. It starts at a candidate: one of
        _CANDIDATES successive sentences, the first drawn at random (after the last sentence of the split comes its
        first one), or the first sentence of the drawn sentence's document. The candidate with the fewest missing tokens
        is taken.
        """
        offsets, documents = self._split.sentences, self._split.documents
        drawn, source = self._by_size.draw(document, size, place)
        window = (drawn[:, None] + np.arange(_CANDIDATES)) % (len(offsets) - 1)
        candidates = np.column_stack([window, documents[source]])
        sources = np.searchsorted(documents, candidates, side="right") - 1
        begin = offsets[candidates]
        end = begin + size[:, None]
        unfit = (sources == document[:, None]) | (end > offsets[documents[sources + 1]])
        missing = offsets[np.searchsorted(offsets, np.minimum(end, offsets[-1]))] - end
        best = np.where(unfit, np.iinfo(np.int64).max, missing).argmin(axis=1)[:, None]
        return np.take_along_axis(begin, best, 1)[:, 0], np.take_along_axis(missing, best, 1)[:, 0]

    def _layout(self, first: _Spans, second: _Spans) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the tokens [CLS] A [SEP] B [SEP] [PAD]..., the segments 0 0 0 1 1 0..., and the lengths."""
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
        """Chooses the predicted positions and masks `tokens` in place; returns the positions and the targets."""
        column = np.arange(self.sequence_length)
        a_end, b_end = 1 + first_size[:, None], lengths[:, None] - 1
        maskable = (column >= 1) & (column < b_end) & (column != a_end)
        count = np.clip(np.rint(lengths * self.masked_fraction), 1, self.predictions)[:, None]
        order = np.argsort(np.where(maskable, per_token, 2.0), axis=1)[:, : self.predictions]
        used = np.arange(self.predictions) < np.minimum(count, maskable.sum(axis=1, keepdims=True))
        positions = np.sort(np.where(used, order, self.sequence_length), axis=1)
        positions = np.where(used, positions, 0)
        rows = np.arange(len(tokens))[:, None]
        targets = tokens[rows, positions]
        action, word = np.split(per_prediction, 2, axis=1)
        word = (word * self._vocab_size).astype(np.int64)
        inputs = np.where(action < MASKED, self._specials["[MASK]"], np.where(action < MASKED + RANDOM, word, targets))
        tokens[np.broadcast_to(rows, used.shape)[used], positions[used]] = inputs[used]
        return positions, np.where(used, targets, -100)


@dataclass
class _Spans:
    """Holds spans of the token stream: where each begins, and its size in tokens."""

    begin: np.ndarray
    size: np.ndarray


class _DocumentsBySize:
    """Draws sentences from those documents of a split that hold a given number of tokens, without rejected draws.

    second_largest: tokens of the second largest document. Whichever document is excluded, another holds that many.
    """

    def __init__(self, split: Split):
        sizes = np.diff(split.sentences[split.documents])
        self._order = np.argsort(-sizes, kind="stable")
        self._negative_sizes = -sizes[self._order]
        self._rank = np.empty_like(self._order)
        self._rank[self._order] = np.arange(len(sizes))
        sentences = np.diff(split.documents)[self._order]
        self._before = np.concatenate(([0], np.cumsum(sentences)))  # sentences in all larger documents
        self._first = split.documents
        self.second_largest = int(sizes[self._order[1]])

    def draw(self, document: np.ndarray, size: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draws sentences uniformly from the documents other than `document` that hold `size` tokens.

        place: the random numbers to use, uniform in [0, 1). Returns the sentences and their documents.
        """
        rank = self._rank[document]
        own_begin, own_end = self._before[rank], self._before[rank + 1]
        last = self._before[np.searchsorted(self._negative_sizes, -size, side="right")]
        drawn = (place * (last - (own_end - own_begin))).astype(np.int64)
        drawn = np.where(drawn >= own_begin, drawn + own_end - own_begin, drawn)
        rank = np.searchsorted(self._before, drawn, side="right") - 1
        source = self._order[rank]
        return self._first[source] + drawn - self._before[rank], source


def _truncate(
    first: _Spans, second: _Spans, limit: int, streams: Iterable[np.random.Generator]
) -> tuple[_Spans, _Spans]:
    """Removes tokens of the longer of A and B (B if equal), front or back by a coin, until both fit into `limit`."""
    half_a, half_b = limit - limit // 2, limit // 2
    size_a = np.minimum(first.size, np.maximum(half_a, limit - second.size))
    size_b = np.minimum(second.size, np.maximum(half_b, limit - first.size))
    excess = np.stack([first.size - size_a, second.size - size_b], axis=1).tolist()
    front = [[s.binomial(e, 0.5) if e else 0 for e in row] for s, row in zip(streams, excess, strict=True)]
    front_a, front_b = np.array(front, np.int64).T
    return _Spans(first.begin + front_a, size_a), _Spans(second.begin + front_b, size_b)


def _lone_sentence_warnings(split: Split, path: Path, pairs: int) -> list[str]:
    """Returns one warning if much of the text is in one-sentence documents, else none."""
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
    """Cuts documents into passages; returns (passages, 3) int64: first sentence, end of the sentences, document."""
    offsets, starts, ends = split.sentences, split.documents[:-1], split.documents[1:]
    document = np.flatnonzero(ends - starts >= 2)  # each turn of the loop cuts one passage off every document
    begin, found = starts[document], [np.empty((0, 3), np.int64)]
    while len(document):
        end = np.searchsorted(offsets, offsets[begin] + tokens)
        end = np.minimum(np.maximum(end, begin + 2), ends[document])
        # A single last sentence of a document forms a passage with the sentence before it.
        found.append(np.stack([np.minimum(begin, end - 2), end, document], axis=1))
        more = end < ends[document]
        begin, document = end[more], document[more]
    passages = np.concatenate(found)
    return passages[np.argsort(passages[:, 0], kind="stable")]
