"""SQuAD's files: reading, what is said about bad ones, and the files of predictions."""

import json

import pytest

from fastlm.data import DataError
from fastlm.data.labelled import Answer, find_format

CONTEXT = "Ann met Bob in Köln. Bob left."


def question(id="q0", **fields):
    return {"id": id, "question": " Who left? ", "answers": [{"text": "Bob", "answer_start": 21}]} | fields


def write(tmp_path, *questions, context=CONTEXT, indent=1):
    content = {"version": "x", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content, indent=indent))
    return path


def test_answers_are_read_with_their_places(tmp_path):
    two = [{"text": "Bob", "answer_start": 8}, {"text": "Ann met Bob", "answer_start": 0}]
    path = write(tmp_path, question(), question("q1", answers=two), context=CONTEXT + " “é”")
    first, second = find_format("squad1").read(path)
    assert first.question == "Who left?" and first.answers == (Answer("Bob", 21),) and not first.impossible
    assert second.answers == (Answer("Bob", 8), Answer("Ann met Bob", 0)) and second.context == CONTEXT + " “é”"
    lines = path.read_text().splitlines()
    for example in (first, second):
        assert f'"{example.id}"' in lines[int(example.where.rpartition(":")[2]) - 1]


def test_2_0_has_questions_without_an_answer(tmp_path):
    plausible = {"is_impossible": True, "plausible_answers": [{"text": "Ann", "answer_start": 0}]}
    path = write(tmp_path, question("q0", answers=[], **plausible), question("q1", is_impossible=False), question("q2"))
    examples = find_format("squad2").read(path)
    assert [(e.impossible, len(e.answers)) for e in examples] == [(True, 0), (False, 1), (False, 1)]
    with pytest.raises(DataError, match=r"a.json:\d+: question q0 has no answer; in SQuAD 1.1 each question has one"):
        find_format("squad1").read(path)


def test_a_test_file_has_no_answers(tmp_path):
    asked = question()
    del asked["answers"]
    path = write(tmp_path, asked)
    (example,) = find_format("squad2").read(path, labelled=False)
    assert example.answers == () and not example.impossible
    with pytest.raises(DataError, match=r'a.json:\d+: question q0: no column "answers"'):
        find_format("squad2").read(path)


BAD = {
    "another place": (
        {"answers": [{"text": "Bob", "answer_start": 20}]},
        "'Bob' is not in .* at character 20; it begins at 8",
    ),
    "not in it": ({"answers": [{"text": "Eve", "answer_start": 0}]}, "'Eve' is not in .* it is nowhere in the context"),
    "negative": ({"answers": [{"text": "left.", "answer_start": -5}]}, "'left.' is not in its context at character -5"),
    "no place": ({"answers": [{"text": "Bob"}]}, '"answer_start": a character\'s number expected, got null'),
    "empty": ({"answers": [{"text": "", "answer_start": 0}]}, "an answer with text expected, got an empty one"),
    "both": ({"is_impossible": True}, '"is_impossible" is true, but it has 1 answers'),
    "neither": ({"answers": [], "is_impossible": False}, '"is_impossible" is false, but it has no answers'),
    "no question": ({"question": None}, '"question": a string expected, got null'),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_question_is_named(tmp_path, case):
    fields, message = BAD[case]
    with pytest.raises(DataError, match=rf"a\.json:\d+: question q7.*{message}"):
        find_format("squad2").read(write(tmp_path, question(), question("q7", **fields)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.json: a JSON object expected, got an empty file"),
        ('{"data": []}', "a.json: no questions in it"),
        ('{"version": "1"}', 'a.json: no column "data"; there are version'),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', r'data\[0\]\.paragraphs\[0\]: no column "context"'),
        ('{\n"data": [\n}', "a.json:3: not JSON"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=message):
        find_format("squad1").read(tmp_path / "a.json")


def test_predictions_are_written_as_the_official_scripts_take_them(tmp_path):
    (path,) = find_format("squad1").submission(tmp_path / "one", ["a", "b"], ["Köln", "Bob"])
    assert path.name == "predictions.json" and json.loads(path.read_text()) == {"a": "Köln", "b": "Bob"}
    paths = find_format("squad2").submission(tmp_path / "two", ["a", "b"], [("", 2.5), ("Bob", -3)])
    assert [path.name for path in paths] == ["predictions.json", "null_odds.json"]
    assert [json.loads(path.read_text()) for path in paths] == [{"a": "", "b": "Bob"}, {"a": 2.5, "b": -3.0}]
    with pytest.raises(ValueError, match="a prediction per id expected, got 2 for 1 different ids"):
        find_format("squad1").submission(tmp_path, ["a", "a"], ["x", "y"])
