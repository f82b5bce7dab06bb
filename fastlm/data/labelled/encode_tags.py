"""Tagging: a word's tag is learned and predicted at its first piece (BERT, section 5.3).

places of the Encodings, for W words of all examples:

    word_at       (W,)              the position of a word's first piece in its sequence; -1 for a word that has no
                                    piece, or does not fit
    word_starts   (examples + 1,)   where an example's words begin among all
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fastlm.data.inputs import Ids, Template, check_bidirectional, surround
from fastlm.data.labelled.description import Description
from fastlm.data.labelled.encode import IGNORED, Builder, Encodings, label_index
from fastlm.data.labelled.examples import TaggedExample
from fastlm.data.tokenizer import Tokenizer


def encode_tags(
    examples: Sequence[TaggedExample],
    tokenizer: Tokenizer,
    template: Template,
    task: Description,
    *,
    targets: bool,
    places: bool,
) -> Encodings:
    """Encodes each sentence: [CLS] pieces [SEP], with `task.document_context` amid the sentences around it.

    The tag of a word is the target of its first piece; all other tokens are ignored. A sentence that does not fit
    loses its last pieces.
    """
    check_bidirectional(template, "tagging")
    pieces = tokenizer.encode_corpus([word for e in examples for word in e.words])
    word_starts = np.concatenate(([0], np.cumsum([len(e.words) for e in examples])))
    sentences = [pieces[begin:end] for begin, end in pairwise(word_starts.tolist())]
    around = _Documents(examples, sentences) if task.document_context else None
    room, builder, word_at = template.max_length - 2, Builder(), []
    for number, (example, words) in enumerate(zip(examples, sentences, strict=True)):
        ids = [piece for word in words for piece in word]
        kept = ids[:room]
        content, left = around.surround(number, kept, room) if around else (kept, 0)
        encoded = template.text(content)
        positions = _first_pieces(words, room, left + 1)
        target = {}
        if targets:
            tags = [IGNORED] * len(encoded.tokens)
            for position, tag in zip(positions, example.tags, strict=True):
                index = label_index(tag, task.labels, example.where)
                if position >= 0:
                    tags[position] = index
            target["tag_targets"] = tags
        builder.add([encoded], number, len(ids) - len(kept), **target)
        word_at += positions
    return builder.encodings(**({"word_at": np.array(word_at, np.int64), "word_starts": word_starts} if places else {}))


def _first_pieces(words: list[Ids], room: int, offset: int) -> list[int]:
    """Returns the position of each word's first piece, or -1; `offset` is that of the sentence's first piece."""
    positions, used = [], 0
    for word in words:
        positions.append(used + offset if word and used < room else -1)
        used += len(word)
    return positions


class _Documents:
    """Finds the pieces before and after a sentence in its document."""

    def __init__(self, examples: Sequence[TaggedExample], sentences: list[list[Ids]]):
        self._documents: dict[int, Ids] = {}
        self._spans = []
        for example, words in zip(examples, sentences, strict=True):
            text = self._documents.setdefault(example.document, [])
            begin = len(text)
            text += [piece for word in words for piece in word]
            self._spans.append((text, begin, len(text)))

    def surround(self, number: int, sentence: Ids, room: int) -> tuple[Ids, int]:
        """Returns the sentence in its document, at most `room` tokens, and where it begins."""
        text, begin, end = self._spans[number]
        return surround(text[max(0, begin - room) : begin], sentence, text[end : end + room], room)
