"""Baselines: small data on which a bag of words decides, and what each predicts without the text."""

import pytest

from fastlm.data.labelled import Answer, ChoiceExample, SpanExample, TaggedExample, TextExample
from fastlm.evaluate.baselines import baseline_scores, most_frequent, predict_baselines

pytest.importorskip("sklearn")


def texts(*rows):
    """Makes examples of (label, text) or (label, text, pair)."""
    return [TextExample("0", text, *pair or [None], label, "f:1") for label, text, *pair in rows]


def test_classes_of_texts():
    train = texts(
        ("good", "a fine film"), ("good", "fine music"), ("good", "so fine"), ("bad", "a dull film"), ("bad", "dull !")
    )
    test = texts(("good", "fine play"), ("bad", "dull play"))
    found = baseline_scores("classification", ("accuracy", "macro_f1"), train, test, ("bad", "good"))
    assert found["majority"] == {"accuracy": 0.5, "macro_f1": pytest.approx(1 / 3)}
    assert found["tf-idf + logistic regression"] == {"accuracy": 1.0, "macro_f1": 1.0}


def test_classes_of_pairs_depend_on_their_common_words():
    train = texts(
        *[
            (label, f"a {x} b", f"c {y} d")
            for x in "xyz"
            for y in "xyz"
            for label in [str(int(x == y))] * (1 + (x == y))
        ]
    )
    test = texts(("1", "a x b", "c x d"), ("0", "a x b", "c z d"))
    assert predict_baselines("classification", train, test, ("0", "1"))["tf-idf + logistic regression"] == [1, 0]


def test_one_class_alone():
    train = texts(("a", "x"), ("a", "y"))
    found = predict_baselines("classification", train, train, ("a", "b"))
    assert found == {"majority": [0, 0], "tf-idf + logistic regression": [0, 0]}


def test_scores_of_pairs_and_of_texts():
    pairs = texts(
        (0.0, "red cat", "old car"),
        (5.0, "red cat", "red cat"),
        (2.0, "red cat", "red car"),
        (3.0, "old car", "red car"),
    )
    found = baseline_scores("regression", ("pearson", "spearman"), pairs, pairs, None)
    assert found["mean"] == {"pearson": 0, "spearman": 0} and found["tf-idf"]["pearson"] > 0.9
    single = texts((1.0, "cold"), (2.0, "mild"), (3.0, "hot"))
    predicted = predict_baselines("regression", single, single, None)
    assert predicted["mean"] == [2.0] * 3 and predicted["tf-idf"] == sorted(predicted["tf-idf"])


def test_choices():
    examples = [
        ChoiceExample("0", "Ann ate an apple", "Which fruit?", ("a car", "an apple", "a pear"), 1, "f:1"),
        ChoiceExample("1", "Bob drove a car", "", ("a car", "an apple", "a pear"), 0, "f:2"),
        ChoiceExample("2", "Eve slept", "", ("in bed", "Eve woke", "a pear"), 1, "f:3"),
    ]
    found = predict_baselines("choice", examples, examples, None)
    assert found["majority"] == [1, 1, 1] and found["tf-idf"] == [1, 0, 1]


def test_a_classifier_of_choices_learns_words_that_the_context_lacks():
    wrong = [("bad 1", "bad 2", "good"), ("good", "bad 3", "bad 4"), ("bad 5", "good", "bad 6")]
    train = [ChoiceExample("0", "text", "", choices, choices.index("good"), "f:1") for choices in wrong * 4]
    test = [ChoiceExample("0", "other", "", ("bad text", "good text"), 1, "f:1")]
    found = predict_baselines("choice", train, test, None)
    assert found["tf-idf + logistic regression"] == [1] and found["tf-idf"] == [0]


def test_spans():
    context = "Ann lives in Köln. Bob lives in Bonn."
    examples = [
        SpanExample("0", "Where is Bob?", context, (Answer("Bonn", 32),), False, "f:1"),
        SpanExample("1", "Where is Eve?", context, (), True, "f:2"),
        SpanExample("2", "Where is Tom?", context, (), True, "f:3"),
    ]
    found = predict_baselines("span", examples, examples[:1], None)
    assert found == {"majority": [""], "tf-idf": ["Bob lives in Bonn."]}
    scores = baseline_scores("span", ("squad2_f1",), examples, examples[:1], None)
    assert scores["majority"]["squad2_f1"] == 0 and scores["tf-idf"]["squad2_f1"] == pytest.approx(0.4)


def test_tags():
    train = [
        TaggedExample("0", ("Ann", "met", "Bonn"), ("B-PER", "O", "B-LOC"), 0, "f:1"),
        TaggedExample("1", ("Bonn", "met", "Bonn"), ("B-PER", "O", "B-LOC"), 0, "f:5"),
    ]
    test = [TaggedExample("0", ("Bonn", "saw", "Ann"), ("B-LOC", "O", "O"), 0, "f:1")]
    assert predict_baselines("tagging", train, test, None) == {
        "majority": [["B-LOC", "B-LOC", "B-LOC"]],
        "tag of each word": [["B-LOC", "B-LOC", "B-PER"]],
    }


def test_the_most_frequent_value_is_the_smallest_one_on_a_tie():
    assert most_frequent(["b", "a", "b", "a", "c"]) == "a"


def test_no_training_examples():
    with pytest.raises(ValueError, match="train: at least one example expected, got none"):
        baseline_scores("classification", ("accuracy",), [], [], ("a",))
