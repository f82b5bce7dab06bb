"""SQuAD's figures: cases whose values the official scripts of 1.1 and 2.0 gave, worked out by hand again here."""

import pytest

from fastlm.data.labelled import Answer, SpanExample
from fastlm.evaluate.squad import exact, f1_1, f1_2, normalise, score_squad1, score_squad2


def question(id, *answers):
    return SpanExample(id, "?", "c", tuple(Answer(text, 0) for text in answers), not answers, "f:1")


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The U.S. Army", "us army"),
        ("a  cat\tand an\nowl", "cat and owl"),
        ("the-cat", "thecat"),  # punctuation goes before articles
        ("x_y (10%)", "xy 10"),
        ("“The” – ‘an’", "“ ” – ‘ ’"),  # typographic quotes and dashes stay, and are no part of a word
        ("Theory another", "theory another"),
        ("The", ""),
    ],
)
def test_texts_are_normalised(text, normalised):
    assert normalise(text) == normalised


def test_f1_counts_words_as_often_as_they_occur():
    assert f1_1("cat cat dog", "cat cat cat") == pytest.approx(2 / 3)
    assert f1_1("cat", "dog") == 0 and f1_1("cat dog", "the dog, cat") == 1


def test_texts_that_normalise_to_nothing():
    assert exact("The", "an") == 1 and f1_1("The", "an") == 0 and f1_2("The", "an") == 1
    assert f1_2("The", "cat") == f1_2("cat", "") == 0


def test_1_1_takes_the_best_answer_and_counts_missing_predictions_as_0():
    examples, said = [question("a", "the cat", "dog"), question("b", "red house"), question("c", "x")], []
    found = score_squad1(examples, {"a": "Dog", "b": "house"}, said.append)
    assert found == {"exact_match": pytest.approx(100 / 3), "f1": pytest.approx(100 * (1 + 2 / 3) / 3)}
    assert said == ["1 of 3 questions have no prediction and count as 0 (first: c)"]
    with pytest.raises(ValueError, match="f:1: question d has no answer; SQuAD 1.1 needs one"):
        score_squad1([question("d")], {"d": "x"})
    with pytest.raises(ValueError, match="at least one question expected"):
        score_squad1([], {})


EXAMPLES = [question("a", "cat"), question("b", "red house"), question("c"), question("d"), question("e", "The")]
PREDICTIONS = {"a": "cat", "b": "house", "c": "", "d": "wrong", "e": "an"}


def test_2_0_scores_questions_with_and_without_an_answer():
    found = score_squad2(EXAMPLES, PREDICTIONS)
    assert found == {
        "exact": pytest.approx(100 * 3 / 5),
        "f1": pytest.approx(100 * (3 + 2 / 3) / 5),
        "total": 5,
        "HasAns_exact": pytest.approx(100 * 2 / 3),
        "HasAns_f1": pytest.approx(100 * (2 + 2 / 3) / 3),
        "HasAns_total": 3,
        "NoAns_exact": 50,
        "NoAns_f1": 50,
        "NoAns_total": 2,
    }


def test_2_0_counts_a_question_above_the_threshold_as_unanswered():
    odds = {"a": 2.0, "b": 0.5, "c": 3.0, "d": 1.5, "e": 1.0}
    found = score_squad2(EXAMPLES, PREDICTIONS, odds)  # a, c and d are above 1
    assert found["exact"] == pytest.approx(100 * 3 / 5) and found["HasAns_f1"] == pytest.approx(100 * (1 + 2 / 3) / 3)
    assert score_squad2(EXAMPLES, PREDICTIONS, odds, threshold=1.5)["NoAns_exact"] == 50
    # By rising odds: none 2, b 2, e 3, d 2, a 3, c 3; with F1, b adds 2/3.
    assert (found["best_exact"], found["best_exact_thresh"]) == (pytest.approx(60), 1.0)
    assert (found["best_f1"], found["best_f1_thresh"]) == (pytest.approx(100 * (3 + 2 / 3) / 5), 1.0)


def test_the_best_threshold_is_0_if_no_answer_at_all_is_best():
    examples, predictions = [question("a"), question("b"), question("c", "x")], {"a": "y", "b": "y", "c": "x"}
    found = score_squad2(examples, predictions, {"a": -3.0, "b": -2.0, "c": 4.0})
    assert (found["best_exact"], found["best_exact_thresh"]) == (pytest.approx(200 / 3), 0.0)


def test_equal_odds_are_tried_one_after_the_other_in_the_order_of_the_odds():
    """The official script has this quirk: the best value is one that no threshold gives."""
    examples, predictions = [question("a"), question("b", "x")], {"a": "y", "b": "x"}
    assert score_squad2(examples, predictions, {"a": 0.0, "b": 0.0})["best_f1"] == 50
    assert score_squad2(examples, predictions, {"b": 0.0, "a": 0.0})["best_f1"] == 100


def test_a_file_of_2_0_without_one_answer():
    found = score_squad2([question("a"), question("b")], {"a": "", "b": "x"})
    assert found["exact"] == found["NoAns_f1"] == 50 and not any(name.startswith("HasAns") for name in found)


def test_a_model_of_2_0_that_never_answers():
    found = score_squad2(EXAMPLES, dict.fromkeys(PREDICTIONS, ""), dict.fromkeys(PREDICTIONS, 9.0))
    assert found["NoAns_exact"] == 100 and found["HasAns_exact"] == 0
    # By the script, "The" is an answer that is worth a point when it is predicted to be empty.
    assert found["best_exact"] == 60 and score_squad2(EXAMPLES, dict.fromkeys(PREDICTIONS, ""))["exact"] == 60


def test_2_0_needs_a_prediction_per_question():
    with pytest.raises(ValueError, match="4 of 5 questions have no prediction .first: b"):
        score_squad2(EXAMPLES, {"a": "cat"})
    with pytest.raises(ValueError, match="5 of 5 questions have no null odds .first: a"):
        score_squad2(EXAMPLES, PREDICTIONS, {})
