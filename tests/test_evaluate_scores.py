"""Scores by name: values worked out by hand, degenerate inputs, and what each kind of example is compared by."""

import math
import sys

import pytest

from fastlm.data.labelled import (
    Answer,
    ChoiceExample,
    SpanExample,
    TaggedExample,
    TextExample,
    find_format,
    format_names,
)
from fastlm.evaluate.scores import SCORES, score_all, scores_for, targets


def score(name, labels, predictions):
    return SCORES[name].function(labels, predictions)


def test_classes():
    labels, predictions = [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0]  # TP 2, FN 1, FP 1, TN 4
    assert score("accuracy", labels, predictions) == 6 / 8
    assert score("f1", labels, predictions) == pytest.approx(2 / 3)
    assert score("macro_f1", labels, predictions) == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert score("matthews", labels, predictions) == pytest.approx((2 * 4 - 1 * 1) / math.sqrt(3 * 3 * 5 * 5))


def test_matthews_of_three_classes():
    """Is the correlation of Gorodkin: here (c s - sum t p) / sqrt((s^2 - sum p^2) (s^2 - sum t^2)), c = 4, s = 6."""
    labels, predictions = [0, 0, 1, 1, 2, 2], [0, 0, 1, 2, 2, 1]
    assert score("matthews", labels, predictions) == pytest.approx((4 * 6 - 12) / (36 - 12))


@pytest.mark.parametrize(
    ("name", "labels", "predictions", "value"),
    [
        ("matthews", [0, 1, 0, 1], [1, 1, 1, 1], 0),
        ("matthews", [1, 1, 1], [1, 1, 1], 0),
        ("f1", [0, 0, 0], [0, 0, 0], 0),
        ("f1", [0, 1, 0], [0, 0, 0], 0),
        ("f1", [1, 1], [1, 1], 1),
        ("macro_f1", [0, 0], [0, 0], 1),
        ("pearson", [1.0, 2.0, 3.0], [2.0, 2.0, 2.0], 0),
        ("pearson", [5.0, 5.0], [1.0, 2.0], 0),
        ("spearman", [1.0, 2.0, 3.0], [0.1, 0.1, 0.1], 0),
        ("pearson", [1.0], [2.0], 0),
    ],
)
@pytest.mark.filterwarnings("error")
def test_degenerate_inputs_have_their_official_value(name, labels, predictions, value):
    assert score(name, labels, predictions) == value


def test_correlations():
    labels, predictions = [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 3.0, 9.0]
    assert score("pearson", labels, predictions) == pytest.approx(12 / math.sqrt(5 * 36))
    # The ranks of the predictions are 1, 2.5, 2.5, 4.
    assert score("spearman", labels, predictions) == pytest.approx(4.5 / math.sqrt(5 * 4.5))
    assert math.isnan(score("pearson", [1.0, 2.0], [math.nan, 1.0]))  # a model that diverged has no score


def test_answers_are_compared_as_in_both_versions_of_squad():
    labels, predictions = [("The cat", "a dog"), ("Köln",)], ["Cats and dog!", "köln."]
    assert score("squad1_f1", labels, predictions) == pytest.approx((0.5 + 1) / 2)
    assert score("squad1_exact", labels, predictions) == 0.5
    # No answer, and an answer that normalises to nothing: equal in 2.0, and F1 0 in 1.1.
    assert score("squad2_exact", [(), ("The",), ()], ["", "an", "x"]) == pytest.approx(2 / 3)
    assert score("squad2_f1", [(), ("The",), ()], ["", "an", "x"]) == pytest.approx(2 / 3)
    assert (score("squad1_exact", [("The",)], ["an"]), score("squad1_f1", [("The",)], ["an"])) == (1, 0)


def test_every_format_names_scores_that_exist():
    for name in format_names():
        assert set(find_format(name).scores) <= SCORES.keys(), name


def test_tags_without_entities_are_scored_per_token():
    made, said = find_format("conll"), []
    assert scores_for(made, ("B-PER", "I-PER", "O"), pytest.fail) == made.scores
    assert scores_for(made, ("B", "I", "O"), pytest.fail) == made.scores
    assert scores_for(find_format("rte"), ("O", "PER"), pytest.fail) == ("accuracy",)
    assert scores_for(made, ("O", "PER"), said.append)[0] == "token_f1"
    assert scores_for(made, ("I", "NOUN", "VERB"), said.append) == ("token_accuracy",)
    assert len(said) == 2 and all("the tags have no B- or I-" in sentence for sentence in said)


def test_targets_of_each_kind():
    assert targets([TextExample("0", "t", None, "no", "f:1")], ("yes", "no")) == [1]
    assert targets([TextExample("0", "t", None, 2.5, "f:1")], None) == [2.5]
    assert targets([ChoiceExample("0", "c", "", ("x", "y"), 1, "f:1")], None) == [1]
    assert targets([SpanExample("0", "q", "Ann", (Answer("Ann", 0),), False, "f:1")], None) == [("Ann",)]
    assert targets([TaggedExample("0", ("a",), ("O",), 0, "f:1")], ("O",)) == [("O",)]


def test_parts_of_the_data_are_scored_apart():
    labels, predictions, groups = [0, 1, 2, 3], [0, 1, 2, 0], ["high", "high", "middle", "middle"]
    found = score_all(("accuracy",), labels, predictions, groups)
    assert found == {"accuracy": 0.75, "accuracy_high": 1.0, "accuracy_middle": 0.5}
    assert score_all(("accuracy",), labels, predictions, ["high"] * 4) == {"accuracy": 0.75}
    with pytest.raises(ValueError, match="a label per prediction expected, got 4 and 3"):
        score_all(("accuracy",), labels, predictions[1:])


@pytest.mark.parametrize(
    ("module", "score", "library"), [("sklearn", "f1", "scikit-learn"), ("scipy", "pearson", "scipy")]
)
def test_a_missing_library_is_named_with_its_extra(monkeypatch, module, score, library):
    for name in (name for name in list(sys.modules) if name.split(".")[0] == module):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{library} is not installed: pip install 'fastlm\[finetune\]'"):
        SCORES[score].function([0, 1], [1, 0])
