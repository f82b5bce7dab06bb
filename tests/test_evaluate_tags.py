"""Entities as conlleval finds them: by hand, against its printed counts, and against seqeval on random tags."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlm.evaluate.tags import (
    Entity,
    count_entities,
    count_tokens,
    entities,
    entity_f1,
    entity_precision,
    entity_recall,
    marks_entities,
    token_accuracy,
    token_f1,
)

TYPES = ("PER", "LOC-1")
BIO = ("O", *(f"{prefix}-{type}" for prefix in "BI" for type in TYPES))
IOBES = (*BIO, *(f"{prefix}-{type}" for prefix in "ES" for type in TYPES))


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-A I-A O B-A", [("A", 0, 1), ("A", 3, 3)]),
        ("I-A I-A I-B B-B", [("A", 0, 1), ("B", 2, 2), ("B", 3, 3)]),  # lenient: I- begins an entity
        ("O I-A B-A", [("A", 1, 1), ("A", 2, 2)]),
        ("S-A S-A B-A E-A E-A", [("A", 0, 0), ("A", 1, 1), ("A", 2, 3), ("A", 4, 4)]),
        ("B I O B", [("", 0, 1), ("", 3, 3)]),
        ("O O", []),
        ("", []),
    ],
)
def test_entities(tags, found):
    assert entities(tags.split()) == [Entity(*entity) for entity in found]


def test_the_counts_of_conlleval():
    """conlleval.pl printed for this: 14 tokens, 5 phrases, found 6, correct 2; accuracy 71.43%, FB1 36.36."""
    labels, predictions = (
        [tags.split() for tags in sentences]
        for sentences in (
            ("B-PER I-PER O B-LOC B-LOC", "O B-PER I-PER I-PER O", "I-LOC I-LOC O O"),
            ("B-PER I-PER O B-LOC I-LOC", "O B-PER I-PER I-LOC O", "B-LOC I-LOC O I-PER"),
        )
    )
    assert count_entities(labels, predictions) == (5, 6, 2)
    assert entity_precision(labels, predictions) == 2 / 6 and entity_recall(labels, predictions) == 2 / 5
    assert entity_f1(labels, predictions) == pytest.approx(4 / 11)
    assert token_accuracy(labels, predictions) == 10 / 14


@st.composite
def sentences(draw):
    """Returns labels and predictions of the same lengths."""
    tags = st.sampled_from(draw(st.sampled_from([BIO, IOBES])))
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    return tuple([[draw(tags) for _ in range(length)] for length in lengths] for _ in range(2))


@settings(max_examples=150, deadline=None)
@given(sentences())
@pytest.mark.filterwarnings("ignore")  # seqeval's of undefined precision
def test_the_scores_are_those_of_seqeval(pair):
    metrics = pytest.importorskip("seqeval.metrics")
    assert entity_f1(*pair) == pytest.approx(metrics.f1_score(*pair, zero_division=0))
    assert entity_precision(*pair) == pytest.approx(metrics.precision_score(*pair, zero_division=0))
    assert entity_recall(*pair) == pytest.approx(metrics.recall_score(*pair, zero_division=0))
    assert token_accuracy(*pair) == pytest.approx(metrics.accuracy_score(*pair))


def test_without_entities_the_scores_are_0():
    nothing, one = [["O", "O"]], [["B-A", "O"]]
    for labels, predictions in ((nothing, nothing), (one, nothing), (nothing, one)):
        scores = [score(labels, predictions) for score in (entity_f1, entity_precision, entity_recall, token_f1)]
        assert scores == [0, 0, 0, 0]


def test_tokens_are_scored_without_those_outside():
    labels, predictions = [["PER", "O", "PER"], ["LOC"]], [["PER", "LOC", "O"], ["LOC"]]
    assert count_tokens(labels, predictions) == (3, 3, 2)
    assert token_f1(labels, predictions) == pytest.approx(2 / 3) and token_accuracy(labels, predictions) == 0.5


def test_which_tag_sets_mark_entities():
    assert marks_entities(BIO) and marks_entities(("O", "S-A")) and marks_entities(("O", "B", "I"))
    assert not marks_entities(("O", "PER", "LOC")) and not marks_entities(("I", "NOUN")) and not marks_entities(("O",))


def test_other_tags_and_lengths_are_refused():
    with pytest.raises(ValueError, match="O, or one with B-, I-, E- or S- expected, got 'PER'"):
        entities(["O", "PER"])
    with pytest.raises(ValueError, match="2 tags expected for sentence 1, got 1"):
        entity_f1([["O"], ["O", "O"]], [["O"], ["O"]])
    with pytest.raises(ValueError, match="2 sentences expected, got 1"):
        token_accuracy([["O"], ["O"]], [["O"]])
