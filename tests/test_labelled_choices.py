"""The files of RACE, Story Cloze, SWAG, CommonsenseQA, SNLI and SciTail."""

import json

import pytest

from fastlm.data import DataError
from fastlm.data.labelled import ChoiceExample, find_format

SWAG = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3"
CLOZE = "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4," \
    "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding"  # fmt: skip


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_swag(tmp_path):
    row = '0,v-1,77,"A man sits. He","A man sits.",He,gold,"eats, then runs.",sings.,sleeps.,flies.'
    path = write(tmp_path / "a.csv", f"{SWAG},label", f"{row},3")
    endings = ("He eats, then runs.", "He sings.", "He sleeps.", "He flies.")
    assert find_format("swag").read(path) == [ChoiceExample("77", "A man sits.", "", endings, 3, f"{path}:2")]
    assert find_format("swag").read(write(tmp_path / "b.csv", SWAG, row), labelled=False)[0].label is None
    with pytest.raises(DataError, match=r'b.csv:2: no column "label"'):
        find_format("swag").read(tmp_path / "b.csv")
    with pytest.raises(DataError, match=r'a.csv:2: "label": a number from 0 to 3 expected, got "4"'):
        find_format("swag").read(write(path, f"{SWAG},label", f"{row},4"))


def test_story_cloze_counts_its_endings_from_1(tmp_path):
    path = write(
        tmp_path / "a.csv", CLOZE, 'id-1,One.,"Two, too.",Three.,Four.,Good.,Bad.,1', "id-2,1.,2.,3.,4.,X.,Y.,2"
    )
    first, second = find_format("story-cloze").read(path)
    assert first == ChoiceExample("id-1", "One. Two, too. Three. Four.", "", ("Good.", "Bad."), 0, f"{path}:2")
    assert second.label == 1
    with pytest.raises(DataError, match=r'a.csv:2: "AnswerRightEnding": a number from 1 to 2 expected, got "0"'):
        find_format("story-cloze").read(write(path, CLOZE, "id-2,1.,2.,3.,4.,X.,Y.,0"))


def passage(id, **fields):
    return json.dumps(
        {
            "id": id,
            "article": "Ann left.",
            "questions": ["Who left?", "Ann _ .", "_ or _ ?"],
            "options": [["Ann", "Bob", "Eve", "Tom"], ["went", r"\1", "c", "d"], ["a", "b", "c", "d"]],
            "answers": ["A", "B", "D"],
        }
        | fields
    )


def test_race_is_a_folder_of_passages(tmp_path):
    write(tmp_path / "train/middle/10.txt", passage("middle10.txt"))
    high = write(tmp_path / "train/high/2.txt", passage("high2.txt"))
    made = find_format("race")
    examples = made.read(tmp_path / "train")
    assert [e.id for e in examples] == [f"{name}/{i}" for name in ("high2.txt", "middle10.txt") for i in range(3)]
    assert [made.group(e) for e in examples] == ["high"] * 3 + ["middle"] * 3
    asked, filled, two_blanks = made.read(high)
    assert asked[1:5] == ("Ann left.", "Who left?", ("Ann", "Bob", "Eve", "Tom"), 0)
    assert filled[2:5] == ("", ("Ann went .", r"Ann \1 .", "Ann c .", "Ann d ."), 1)
    assert two_blanks[2:5] == ("_ or _ ?", ("a", "b", "c", "d"), 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answers": ["A", "B", "E"]}, r'2.txt: question 3: "answers": one of A, B, C, D expected, got "E"'),
        ({"answers": ["A"]}, "2.txt: 3 questions, 3 lists of options and 1 answers; equal numbers expected"),
        ({"article": None}, '2.txt: "article": a string expected, got null'),
    ],
)
def test_a_bad_passage_is_named(tmp_path, fields, message):
    write(tmp_path / "2.txt", passage("high2.txt", **fields))
    with pytest.raises(DataError, match=message):
        find_format("race").read(tmp_path)


def test_a_folder_without_passages_is_named(tmp_path):
    with pytest.raises(DataError, match=r"files named \*.txt expected, each with a passage in JSON, got none"):
        find_format("race").read(tmp_path)


def test_commonsenseqa(tmp_path):
    choices = [{"label": letter, "text": f"the {letter}"} for letter in "ABCDE"]
    record = {"id": "f00", "answerKey": "C", "question": {"stem": "Where is it?", "choices": choices}}
    path = write(tmp_path / "a.jsonl", json.dumps(record))
    texts = tuple(f"the {letter}" for letter in "ABCDE")
    assert find_format("commonsenseqa").read(path) == [ChoiceExample("f00", "Where is it?", "", texts, 2, f"{path}:1")]
    del record["answerKey"]
    path = write(tmp_path / "a.jsonl", json.dumps(record))
    assert find_format("commonsenseqa").read(path, labelled=False)[0].label is None
    with pytest.raises(DataError, match=r'a.jsonl:1: no column "answerKey"'):
        find_format("commonsenseqa").read(path)


def test_pairs_of_snli_without_a_gold_label_are_skipped_and_counted(tmp_path):
    pairs = [
        {"gold_label": g, "sentence1": "A.", "sentence2": "B.", "pairID": g} for g in ("neutral", "-", "entailment")
    ]
    path, said = write(tmp_path / "a.jsonl", *map(json.dumps, pairs)), []
    made = find_format("snli")
    assert [(e.id, e.pair, e.label) for e in made.read(path, said.append)] == [
        ("neutral", "B.", "neutral"),
        ("entailment", "B.", "entailment"),
    ]
    assert said == [f'{path}: 1 row without a gold label ("-") skipped (first: {path}:2)']
    assert [e.label for e in made.read(path, pytest.fail, labelled=False)] == ["neutral", None, "entailment"]
    with pytest.raises(DataError, match=r"a.jsonl:1: unknown label 'maybe'; the labels are contradiction, entailment"):
        made.read(write(path, json.dumps(pairs[0] | {"gold_label": "maybe"})))


def test_scitail_has_no_header_and_its_test_file_may_lack_the_labels(tmp_path):
    made = find_format("scitail")
    path = write(tmp_path / "a.tsv", 'Ice is "cold".\tIce is cold.\tentails', "Ice is cold.\tFire is hot.\tneutral")
    found = made.read(path)
    assert [(e.id, e.text, e.pair, e.label) for e in found] == [
        ("0", 'Ice is "cold".', "Ice is cold.", "entails"),
        ("1", "Ice is cold.", "Fire is hot.", "neutral"),
    ]
    bare = write(tmp_path / "b.tsv", "Ice is cold.\tFire is hot.")
    assert [e.label for e in made.read(bare, labelled=False)] == [None]
    with pytest.raises(
        DataError, match=r"b.tsv:1: 3 columns \(premise, hypothesis, label\) without a header expected, got 2"
    ):
        made.read(bare)
    with pytest.raises(DataError, match=r"c.tsv:1: unknown label 'label'; the labels are entails, neutral"):
        made.read(write(tmp_path / "c.tsv", "premise\thypothesis\tlabel"))
