"""Question answering: windows of a context beside the question, and an answer's characters as word pieces.

BERT's code (run_squad.py) tightens the words of an answer to word pieces by spelling. Here the tokenizer gives the
characters of each piece, so a span is the fewest pieces that cover the answer, and an answer is the text itself.

places of the Encodings, for C context tokens of all examples:

    begin, end          (items,)          the context tokens [begin, end) of a window, at `second` and after it
    offsets             (C, 2)            the characters [start, end) of each context token
    offset_starts       (examples + 1,)   where an example's context tokens begin among all
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastlm.data.corpus import DataError
from fastlm.data.inputs import Ids, Template, check_bidirectional, split_windows
from fastlm.data.labelled.description import Description
from fastlm.data.labelled.encode import IGNORED, Builder, Encodings, chunks
from fastlm.data.labelled.examples import SpanExample
from fastlm.data.tokenizer import Tokenizer


class Context(NamedTuple):
    """Holds the pieces of a context: their ids, and the characters [start, end) of each."""

    ids: Ids
    begins: list[int]
    ends: list[int]

    def pieces(self, start: int, end: int) -> tuple[int, int] | None:
        """Returns the first and the last piece with a character in [start, end), or None if there is none."""
        first, last = bisect_right(self.ends, start), bisect_left(self.begins, end) - 1
        return (first, last) if first <= last else None


def encode_spans(
    examples: Sequence[SpanExample],
    tokenizer: Tokenizer,
    template: Template,
    task: Description,
    *,
    targets: bool,
    places: bool,
) -> Encodings:
    """Encodes each example as windows: [CLS] question [SEP] context tokens [SEP].

    Targets are the positions of the first answer's first and last piece. They are 0, that of [CLS], in a window that
    does not hold the whole answer or has none (as in BERT's code, SQuAD 1.1 too), and ignored if the answer consists
    of characters that no piece stands for.
    """
    check_bidirectional(template, "span")
    if template.max_length < task.max_question + 4:
        raise DataError(
            f"max_length: at least {task.max_question + 4} expected, as a question of {task.max_question} tokens "
            f"(max_question), three special tokens and a context have to fit, got {template.max_length}"
        )
    builder, begins, ends = Builder(), [], []
    offsets: list[np.ndarray] = []
    for first, chunk in chunks(examples):
        contexts = encode_contexts(tokenizer, chunk)
        questions = tokenizer.encode_corpus([e.question for e in chunk])
        for number, (example, whole) in enumerate(zip(chunk, questions, strict=True), first):
            context, question = contexts[example.context], whole[: task.max_question]
            windows = split_windows(len(context.ids), template.room_beside(question), task.doc_stride)
            for window in windows:
                encoded = template.window(question, context.ids[slice(*window)])
                target = _target(example, context, window, encoded.second) if targets else {}
                builder.add([encoded], number, len(whole) - len(question), **target)
            begins += [begin for begin, _ in windows]
            ends += [end for _, end in windows]
            if places:
                offsets.append(np.array([context.begins, context.ends], np.int32).T)
    if not places:
        return builder.encodings()
    sizes = [len(each) for each in offsets]
    return builder.encodings(
        begin=np.array(begins),
        end=np.array(ends),
        offsets=np.concatenate(offsets),
        offset_starts=np.concatenate(([0], np.cumsum(sizes))),
    )


def encode_contexts(tokenizer: Tokenizer, examples: Sequence[SpanExample]) -> dict[str, Context]:
    """Returns the pieces of the contexts by text; a context that many questions share is encoded once."""
    texts, found = list(dict.fromkeys(e.context for e in examples)), {}
    for text, (ids, characters) in zip(texts, tokenizer.encode_with_offsets(texts), strict=True):
        found[text] = Context(ids, [begin for begin, _ in characters], [end for _, end in characters])
    return found


def _target(example: SpanExample, context: Context, window: tuple[int, int], second: int) -> dict[str, int]:
    """Returns the positions of the first answer in a window's sequence."""
    if not example.answers:
        return {"span_starts": 0, "span_ends": 0}
    answer = example.answers[0]
    pieces = context.pieces(answer.start, answer.start + len(answer.text))
    if pieces is None:
        return {"span_starts": IGNORED, "span_ends": IGNORED}
    begin, end = window
    if not begin <= pieces[0] <= pieces[1] < end:
        return {"span_starts": 0, "span_ends": 0}
    return {"span_starts": pieces[0] - begin + second, "span_ends": pieces[1] - begin + second}
