"""A rule-based splitter of paragraphs into sentences."""

from __future__ import annotations

import re

_OPENING = r"[\"'“‘(\[_]"
_CLOSING = r"[\"'”’)\]_]"
# A sentence ends at . ! ? (or several), closing quotes and brackets, and white space, if what follows starts like a
# sentence: opening quotes or dashes, then a capital, a digit or a letter beyond ASCII.
_END = re.compile(rf"([.!?…]+){_CLOSING}*\s+(?={_OPENING}*-*{_OPENING}*[^\W_a-z])")
# A lone full stop after one of these, or after a single capital ("J. Austen"), abbreviates; "I." ends a sentence.
_ABBREVIATION = re.compile(
    r"(?:^|[\s\"'“‘(\[_-])"
    r"(?:Mr|Mrs|Ms|Messrs|Dr|St|Rev|Hon|Capt|Col|Gen|Lt|Maj|Sgt|Prof|Jr|Sr|Esq|Mme|Mlle|vs|cf|viz|Vol|Fig|"
    r"e\.g|i\.e|[A-HJ-Z])$"
)


def split_sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph, in order; joined by single spaces they are the paragraph again.

    It errs on the side of too few: "said he. yes" and text without capitals stay whole.
    """
    sentences, start = [], 0
    for end in _END.finditer(paragraph):
        if end[1] == "." and _ABBREVIATION.search(paragraph, max(0, end.start() - 10), end.start()):
            continue
        sentences.append(paragraph[start : end.end()].rstrip())
        start = end.end()
    if start < len(paragraph):
        sentences.append(paragraph[start:])
    return sentences
