"""Splits paragraphs into sentences by rules, in linear time and bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from fastlm.data.corpus import BLOCK, Fragment

LONGEST = BLOCK  # characters of a sentence; a longer one is cut, at a space if there is one

_OPENING = r"\"'“‘(\[_«‹¿¡「『（【《〈［｛"
_CLOSING = r"\"'”’)\]_»›」』）】》〉］｝"
_IDEOGRAPHIC = "。！？｡"  # no white space follows these
# ASCII, then Arabic and Urdu, Devanagari, Armenian, Ethiopic, Khmer, Burmese and Tibetan.
_ENDERS = ".!?…‼⁇⁈⁉" + "؟۔" + "।॥" + "։" + "።፧፨" + "។៕" + "။" + "།" + _IDEOGRAPHIC
# Everything after the enders is optional and nothing follows, so that no text makes the match try again.
_POSSIBLE_END = re.compile(rf"([{_ENDERS}]+)([{_CLOSING}]*)(\s*)([{_OPENING}]*-*[{_OPENING}]*)")
_START = re.compile(r"[^\W_a-z]")  # a capital, a digit or a letter beyond ASCII
# A lone full stop after one of these, or after a single capital ("J. Austen"), abbreviates; "I." ends a sentence.
_ABBREVIATION = re.compile(
    r"(?:^|[\s\"'“‘(\[_-])"
    r"(?:Mr|Mrs|Ms|Messrs|Dr|St|Rev|Hon|Capt|Col|Gen|Lt|Maj|Sgt|Prof|Jr|Sr|Esq|Mme|Mlle|vs|cf|viz|Vol|Fig|"
    r"e\.g|i\.e|[A-HJ-Z])$"
)


def split_sentences(paragraph: str) -> list[str]:
    """Returns the sentences of a paragraph, in order, without the white space between them.

    In doubt it does not split: "said he. yes" and text without capitals stay whole.
    """
    return [sentence.rstrip() for sentence in sentences([Fragment(paragraph, True)])]


def sentences(fragments: Iterable[Fragment]) -> Iterator[str]:
    """Yields the sentences of a document, each with what follows it: a newline after a paragraph, else a space or "".

    Joined they are the document and a newline. Each has at most LONGEST characters, without its newline.
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
    """Returns the sentences with the white space after them; the last one may go on in the next fragment."""
    found, start = [], 0
    for match in _POSSIBLE_END.finditer(paragraph):
        if _ends_sentence(match):
            found.append(paragraph[start : match.start(4)])
            start = match.start(4)
    return [*found, paragraph[start:]]


def _ends_sentence(match: re.Match[str]) -> bool:
    """Says whether a sentence ends here: white space follows, then quotes or dashes, then a capital or the like.

    An ideographic full stop needs nothing after it. If it closes a quotation, the sentence may go on, and is not ended.
    """
    enders, closing, space, _ = match.groups()
    if not space:
        return enders[-1] in _IDEOGRAPHIC and not closing and match.end() < len(match.string)
    if not _START.match(match.string, match.end()):
        return False
    return enders != "." or not _ABBREVIATION.search(match.string, max(0, match.start() - 10), match.start())


def _cut(sentence: str) -> list[str]:
    """Returns a sentence in parts of at most LONGEST characters."""
    parts, start = [], 0
    while len(sentence) - start > LONGEST:
        end = sentence.rfind(" ", start, start + LONGEST) + 1 or start + LONGEST
        parts.append(sentence[start:end])
        start = end
    return [*parts, sentence[start:]]
