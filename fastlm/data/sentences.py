"""Splits paragraphs into sentences by rules, in linear time and bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from fastlm.data.corpus import BLOCK, Fragment

MAX_CHARACTERS = BLOCK  # of a sentence; a longer one is cut, at a space if there is one

_OPENING = r"\"'“‘(\[_«‹¿¡「『（【《〈［｛"
_CLOSING = r"\"'”’)\]_»›」』）】》〉］｝"
_IDEOGRAPHIC = "。！？｡"  # these need no white space after them
# ASCII, then Arabic and Urdu, Devanagari, Armenian, Ethiopic, Khmer, Burmese and Tibetan.
_ENDERS = ".!?…‼⁇⁈⁉" + "؟۔" + "।॥" + "։" + "።፧፨" + "។៕" + "။" + "།" + _IDEOGRAPHIC
# Everything after the enders is optional and the pattern ends there, so that no text causes backtracking.
_POSSIBLE_END = re.compile(rf"([{_ENDERS}]+)([{_CLOSING}]*)(\s*)([{_OPENING}]*-*[{_OPENING}]*)")
_START = re.compile(r"[^\W_a-z]")  # a capital, a digit or a letter beyond ASCII
# A single full stop after one of these, or after one capital ("J. Austen"), ends no sentence. "I." does.
_ABBREVIATION = re.compile(
    r"(?:^|[\s\"'“‘(\[_-])"
    r"(?:Mr|Mrs|Ms|Messrs|Dr|St|Rev|Hon|Capt|Col|Gen|Lt|Maj|Sgt|Prof|Jr|Sr|Esq|Mme|Mlle|vs|cf|viz|Vol|Fig|"
    r"e\.g|i\.e|[A-HJ-Z])$"
)


def split_sentences(paragraph: str) -> list[str]:
    """Returns the sentences of a paragraph, in order, without the white space between them.

    In doubt a sentence is not split: "said he. yes" and text without capitals stay whole.
    """
    return [sentence.rstrip() for sentence in sentences([Fragment(paragraph, True)])]


def sentences(fragments: Iterable[Fragment]) -> Iterator[str]:
    """Yields the sentences of a document, each with a newline if it ends a paragraph, else with a space or nothing.

    Joining them gives the document and a newline. A sentence has at most MAX_CHARACTERS, its newline not counted.
    """
    rest = ""
    for text, ends in fragments:
        *whole, rest = _split(rest + text)
        for sentence in whole:
            yield from _cut(sentence)
        *cut, rest = _cut(rest)
        yield from cut
        if ends and rest:
            yield rest + "\n"
            rest = ""


def _split(paragraph: str) -> list[str]:
    """Returns the sentences with the white space after them; the last one may continue in the next fragment."""
    found, start = [], 0
    for match in _POSSIBLE_END.finditer(paragraph):
        if _ends_sentence(match):
            found.append(paragraph[start : match.start(4)])
            start = match.start(4)
    return [*found, paragraph[start:]]


def _ends_sentence(match: re.Match[str]) -> bool:
    """Returns whether a sentence ends here: white space follows, then optional quotes or dashes, then a _START.

    An ideographic full stop needs nothing after it. If a quotation mark closes after it, it ends no sentence, because
    the sentence may continue.
    """
    enders, closing, space, _ = match.groups()
    if not space:
        return enders[-1] in _IDEOGRAPHIC and not closing and match.end() < len(match.string)
    if not _START.match(match.string, match.end()):
        return False
    return enders != "." or not _ABBREVIATION.search(match.string, max(0, match.start() - 10), match.start())


def _cut(sentence: str) -> list[str]:
    """Cuts a sentence into parts of at most MAX_CHARACTERS."""
    parts, start = [], 0
    while len(sentence) - start > MAX_CHARACTERS:
        end = sentence.rfind(" ", start, start + MAX_CHARACTERS) + 1 or start + MAX_CHARACTERS
        parts.append(sentence[start:end])
        start = end
    return [*parts, sentence[start:]]
