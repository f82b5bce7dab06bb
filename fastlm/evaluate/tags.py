"""Scores of tagged sentences: entities as in conlleval, the script of the CoNLL tasks, and tokens.

An entity is correct if its type, its first word and its last word are. Its beginning is found leniently, as conlleval
does in BIO and IOB1: at B-, and at I- after O or after another type. In IOBES (as in seqeval), it is also found at S-,
and at I- and E- after the end of an entity.
Precision, recall and F1 count the entities of all types together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

Tags = Sequence[str]
_PREFIXES = "BIES"


class Entity(NamedTuple):
    """Holds an entity: its type ("" in a tag set without types), and its words first to last, both included."""

    type: str
    first: int
    last: int


def marks_entities(tags: Iterable[str]) -> bool:
    """Returns whether a tag set marks entities: whether it has tags such as B-PER and I-PER, or B and I alone."""
    tags = set(tags)
    return any(tag[0:1] in _PREFIXES and tag[1:2] == "-" for tag in tags) or {"B", "I"} <= tags <= {*_PREFIXES, "O"}


def entities(tags: Tags) -> list[Entity]:
    """Returns the entities of a sentence. Raises ValueError for a tag other than O, B-TYPE, I-TYPE, E-TYPE, S-TYPE."""
    found, first = [], None
    before, type_before = "O", ""
    for index, tag in enumerate((*tags, "O")):
        prefix, _, type = tag.partition("-")
        if prefix not in ("O", *_PREFIXES):
            raise ValueError(f"tag: O, or one with B-, I-, E- or S- expected, got {tag!r}")
        begins = prefix in ("B", "S") or (prefix != "O" and (before in ("O", "E", "S") or type != type_before))
        if first is not None and (begins or prefix == "O"):
            found.append(Entity(type_before, first, index - 1))
            first = None
        if begins:
            first = index
        before, type_before = prefix, type
    return found


class Counts(NamedTuple):
    """Counts what is labelled, what is predicted, and what is both."""

    labelled: int
    predicted: int
    right: int

    @property
    def precision(self) -> float:
        """Is 0 if nothing is predicted."""
        return self.right / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Is 0 if nothing is labelled."""
        return self.right / self.labelled if self.labelled else 0.0

    @property
    def f1(self) -> float:
        """Is 0 if nothing is right."""
        return 2 * self.right / (self.labelled + self.predicted) if self.right else 0.0


def count_entities(labels: Sequence[Tags], predictions: Sequence[Tags]) -> Counts:
    """Counts the entities of sentences."""
    labelled = predicted = right = 0
    for tags, other in _pairs(labels, predictions):
        found, guessed = set(entities(tags)), set(entities(other))
        labelled, predicted, right = labelled + len(found), predicted + len(guessed), right + len(found & guessed)
    return Counts(labelled, predicted, right)


def count_tokens(labels: Sequence[Tags], predictions: Sequence[Tags]) -> Counts:
    """Counts the tokens whose tag is not "O"."""
    pairs = [pair for tags, other in _pairs(labels, predictions) for pair in zip(tags, other, strict=True)]
    labelled, predicted = (sum(pair[side] != "O" for pair in pairs) for side in (0, 1))
    return Counts(labelled, predicted, sum(tag == other != "O" for tag, other in pairs))


def entity_f1(labels: Sequence[Tags], predictions: Sequence[Tags]) -> float:
    return count_entities(labels, predictions).f1


def entity_precision(labels: Sequence[Tags], predictions: Sequence[Tags]) -> float:
    return count_entities(labels, predictions).precision


def entity_recall(labels: Sequence[Tags], predictions: Sequence[Tags]) -> float:
    return count_entities(labels, predictions).recall


def token_f1(labels: Sequence[Tags], predictions: Sequence[Tags]) -> float:
    return count_tokens(labels, predictions).f1


def token_accuracy(labels: Sequence[Tags], predictions: Sequence[Tags]) -> float:
    """Returns the share of tokens whose tag is right, "O" included; 0 without tokens."""
    pairs = [pair for tags, other in _pairs(labels, predictions) for pair in zip(tags, other, strict=True)]
    return sum(tag == other for tag, other in pairs) / len(pairs) if pairs else 0.0


def _pairs(labels: Sequence[Tags], predictions: Sequence[Tags]) -> Iterable[tuple[Tags, Tags]]:
    """Yields the tags of each sentence, labelled and predicted. Raises ValueError if their numbers differ."""
    if len(labels) != len(predictions):
        raise ValueError(f"predictions: {len(labels)} sentences expected, got {len(predictions)}")
    for number, (tags, other) in enumerate(zip(labels, predictions, strict=True)):
        if len(tags) != len(other):
            raise ValueError(f"predictions: {len(tags)} tags expected for sentence {number}, got {len(other)}")
        yield tags, other
