"""Both papers' inputs of fine-tuning: texts, as token ids, become the sequences that a model reads.

BERT (Devlin et al. 2019, figure 4)           [CLS] a [SEP]         [CLS] a [SEP] b [SEP]          the head reads [CLS]
GPT-1 (Radford et al. 2018, figure 1)         start a extract       start a delimiter b extract    it reads extract

    entailment, pairs      a = premise, b = hypothesis
    similarity             GPT-1 reads both orders, (a, b) and (b, a)
    multiple choice        BERT: a = context, b = question + choice. GPT-1: a = context + question, b = choice.
    span                   a = question, b = a window of the context; BERT alone
    tagging                a = a sentence; BERT alone

A context or question that is empty leaves its place to the next part. Imports neither torch nor numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

from fastlm.data.corpus import DataError
from fastlm.data.tokenizer import Tokenizer

GPT1_SPECIALS = ("_start_", "_delimiter_", "_classify_")  # as the original code names them; "_classify_" is extract

Ids = list[int]


class Encoded(NamedTuple):
    """Holds a sequence for the model.

    second: the position where segment 1 begins, the length without one. row: the position that a head on whole
    sequences reads. cut: the number of tokens that did not fit.
    """

    tokens: Ids
    second: int
    row: int
    cut: int


@dataclass(frozen=True)
class Template:
    """Surrounds texts by special tokens: `first` a `last`, or `first` a `between` b `last`, in at most `max_length`.

    causal: whether the model reads to the left only. Its heads then read the last token, otherwise the first.
    pad: the id that fills a batch behind a sequence.
    """

    first: int
    between: int
    last: int
    pad: int
    causal: bool
    max_length: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, max_length: int) -> Self:
        """Returns BERT's template for a WordPiece tokenizer, GPT-1's for a BPE one with GPT1_SPECIALS."""
        if tokenizer.kind == "wordpiece":
            cls_id, sep, pad = (tokenizer.id(name) for name in ("[CLS]", "[SEP]", "[PAD]"))
            return cls(cls_id, sep, sep, pad, causal=False, max_length=max_length)
        start, delimiter, extract = map(tokenizer.id, GPT1_SPECIALS)
        return cls(start, delimiter, extract, tokenizer.unknown or 0, causal=True, max_length=max_length)

    def text(self, a: Ids, b: Ids | None = None) -> Encoded:
        """Returns a text, or a pair of texts, the longer of which loses its last tokens first."""
        if b is None:
            kept = a[: self.max_length - 2]
            return self._join(kept, None, len(a) - len(kept))
        kept_a, kept_b = truncate_pair(a, b, self.max_length - 3)
        return self._join(kept_a, kept_b, len(a) + len(b) - len(kept_a) - len(kept_b))

    def choice(self, context: Ids, question: Ids, option: Ids) -> Encoded:
        """Returns one choice of an example. What does not fit is cut: the context's end first, then the question's.

        The option loses tokens only if it does not fit without both.
        """
        room = self.max_length - (3 if context or question else 2)
        excess = max(0, len(context) + len(question) + len(option) - room)
        kept_context, left = _cut(context, excess)
        kept_question, left = _cut(question, left)
        kept_option, _ = _cut(option, left)
        if self.causal or not context:
            a, b = kept_context + kept_question, kept_option
        else:
            a, b = kept_context, kept_question + kept_option
        return self._join(a, b, excess) if context or question else self._join(kept_option, None, excess)

    def window(self, question: Ids, context: Ids) -> Encoded:
        """Returns a question and a window of its context, which fit; the window begins at `second`."""
        return self._join(question, context, 0)

    def room_beside(self, question: Ids) -> int:
        """Returns how many tokens of a context fit beside a question."""
        return self.max_length - 3 - len(question)

    def _join(self, a: Ids, b: Ids | None, cut: int) -> Encoded:
        tokens = [self.first, *a, self.last] if b is None else [self.first, *a, self.between, *b, self.last]
        second = len(tokens) if b is None else len(a) + 2
        return Encoded(tokens, second, len(tokens) - 1 if self.causal else 0, cut)


def truncate_pair(a: Ids, b: Ids, limit: int) -> tuple[Ids, Ids]:
    """Returns a and b without the last tokens of the longer one, b if both are equal, so that both fit into `limit`.

    This is `_truncate_seq_pair` of BERT's code, which removes one token at a time.
    """
    size_a = min(len(a), max(limit - limit // 2, limit - len(b)))
    size_b = min(len(b), max(limit // 2, limit - len(a)))
    return a[:size_a], b[:size_b]


def split_windows(count: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Returns overlapping windows [begin, end) of at most `room` tokens that cover `count` tokens, as BERT's code does.

    Each begins `stride` tokens after the one before it, or where that one ends if it is shorter. Without tokens there
    is one empty window.
    """
    windows, begin = [], 0
    while True:
        end = min(begin + room, count)
        windows.append((begin, end))
        if end == count:
            return windows
        begin += min(stride, room)


def best_windows(windows: list[tuple[int, int]], count: int) -> list[int]:
    """Returns for each of `count` tokens the window in which it has the most context on its poorer side.

    A window's length adds a hundredth of a token, and the first window wins a tie, as in BERT's code.
    """
    best, scores = [0] * count, [-1.0] * count
    for number, (begin, end) in enumerate(windows):
        for i in range(begin, end):
            score = min(i - begin, end - 1 - i) + 0.01 * (end - begin)
            if score > scores[i]:
                best[i], scores[i] = number, score
    return best


def surround(before: Ids, text: Ids, after: Ids, limit: int) -> tuple[Ids, int]:
    """Returns a text with as much of what is before and after it as fits into `limit`, and where the text begins.

    Both sides get half of the room, and what the other side leaves.
    """
    room = max(0, limit - len(text))
    left = min(len(before), max(room // 2, room - len(after)))
    right = min(len(after), room - left)
    return before[len(before) - left :] + text + after[:right], left


def check_bidirectional(template: Template, kind: str) -> None:
    """Raises DataError if the model reads to the left only, for a kind of task that needs both sides of a token."""
    if template.causal:
        raise DataError(
            f"kind: {kind} needs a model that reads to both sides, as BERT's paper does it; got a causal one"
        )


def _cut(ids: Ids, excess: int) -> tuple[Ids, int]:
    """Returns ids without their last `excess` tokens, and how many are still to be removed elsewhere."""
    size = max(0, len(ids) - excess)
    return ids[:size], excess - (len(ids) - size)
