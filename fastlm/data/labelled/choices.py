"""Multiple choice: RACE, Story Cloze, SWAG, CommonsenseQA, and JSON lines of context, question, choices and label."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fastlm.data.corpus import DataError
from fastlm.data.labelled.examples import ChoiceExample
from fastlm.data.labelled.lines import (
    check_text,
    expect_list,
    expect_object,
    expect_text,
    missing,
    read_json,
    read_json_lines,
)
from fastlm.data.labelled.tables import read_id, read_label, read_rows

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BLANK = re.compile("_+")


def choice_example(values: Mapping[str, Any], where: str, number: str, labelled: bool) -> ChoiceExample:
    """Returns the example of {"context", "question" (optional), "choices": [...], "label": an index, "id" (optional)}.

    Raises DataError for a missing key, fewer than two choices, and a label that is not the index of a choice.
    """
    record = dict(values)
    choices = tuple(check_text(choice, f'{where}: "choices"') for choice in expect_list(record, "choices", where))
    if len(choices) < 2:
        raise DataError(f'{where}: "choices": at least two expected, got {len(choices)}')
    question = "" if record.get("question") is None else expect_text(record, "question", where)
    label = read_label(record, "label", where, partial(_index, count=len(choices), first=0), labelled)
    id = read_id(record, "id" if "id" in record else None, where, number)
    return ChoiceExample(id, expect_text(record, "context", where), question, choices, label, where)


def read_swag(path: Path, labelled: bool) -> list[ChoiceExample]:
    """Reads SWAG's CSV. The context is sent1; each choice is sent2 (the beginning of a sentence) with an ending."""
    examples = []
    for where, row in read_rows(path, "csv"):
        begin = _cell(row, "sent2", where)
        endings = tuple(f"{begin} {_cell(row, f'ending{i}', where)}".strip() for i in range(4))
        label = read_label(row, "label", where, partial(_index, count=4, first=0), labelled)
        id = _cell(row, "fold-ind", where)
        examples.append(ChoiceExample(id, _cell(row, "sent1", where), "", endings, label, where))
    return examples


def read_story_cloze(path: Path, labelled: bool) -> list[ChoiceExample]:
    """Reads Story Cloze's CSV: a story of four sentences and two endings. Its AnswerRightEnding is 1 or 2."""
    examples = []
    for where, row in read_rows(path, "csv"):
        story = " ".join(_cell(row, f"InputSentence{i}", where) for i in range(1, 5))
        endings = tuple(_cell(row, f"RandomFifthSentenceQuiz{i}", where) for i in (1, 2))
        label = read_label(row, "AnswerRightEnding", where, partial(_index, count=2, first=1), labelled)
        examples.append(ChoiceExample(_cell(row, "InputStoryid", where), story, "", endings, label, where))
    return examples


def read_commonsenseqa(path: Path, labelled: bool) -> list[ChoiceExample]:
    """Reads CommonsenseQA's JSON lines. The context is the question, so that there is no other question."""
    examples = []
    for number, (where, record) in enumerate(read_json_lines(path)):
        question = expect_object(record.get("question"), f'{where}: "question"')
        choices = [expect_object(choice, f'{where}: "choices"') for choice in expect_list(question, "choices", where)]
        names = [expect_text(choice, "label", where) for choice in choices]
        texts = tuple(expect_text(choice, "text", where) for choice in choices)
        label = read_label(record, "answerKey", where, partial(_position, names=names), labelled)
        id = read_id(record, "id" if "id" in record else None, where, str(number))
        examples.append(ChoiceExample(id, expect_text(question, "stem", where), "", texts, label, where))
    return examples


def read_race(path: Path, labelled: bool) -> list[ChoiceExample]:
    """Reads RACE: a folder (train, or train/high) of files that hold a passage each, or one such file.

    Where a question has one blank ("_"), the choices are the sentences with the option in the place of the blank, and
    the question is empty. The id is that of the passage and the question's number: "high123.txt/0".
    """
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: files named *.txt expected, each with a passage in JSON, got none")
    return [example for file in files for example in _read_passage(file, labelled)]


def race_level(example: ChoiceExample) -> str:
    """Returns "middle" or "high", the school that a question of RACE is from, or "" if its id does not say it."""
    found = re.match("middle|high", example.id)
    return found[0] if found else ""


def _read_passage(path: Path, labelled: bool) -> Iterator[ChoiceExample]:
    _, record = read_json(path)
    name = str(path)
    article, questions = expect_text(record, "article", name), expect_list(record, "questions", name)
    options = expect_list(record, "options", name)
    answers = expect_list(record, "answers", name) if labelled or "answers" in record else [None] * len(questions)
    if not len(questions) == len(options) == len(answers):
        raise DataError(
            f"{path}: {len(questions)} questions, {len(options)} lists of options and {len(answers)} answers; "
            f"equal numbers expected"
        )
    id = str(record.get("id", path.parent.name + path.name))
    for i, question in enumerate(questions):
        where = f"{path}: question {i + 1}"
        question = check_text(question, where)
        texts = [check_text(option, where) for option in expect_list({"options": options[i]}, "options", where)]
        names = list(_LETTERS[: len(texts)])
        label = read_label({"answers": answers[i]}, "answers", where, partial(_position, names=names), labelled)
        if len(_BLANK.findall(question)) == 1:
            before, after = _BLANK.split(question)
            question, texts = "", [before + text + after for text in texts]
        yield ChoiceExample(f"{id}/{i}", article, question, tuple(texts), label, where)


def _cell(row: Mapping[str, Any], column: str, where: str) -> str:
    if column not in row:
        raise missing(where, column, row)
    return row[column].strip()


def _index(value: Any, where: str, *, count: int, first: int) -> int:
    """Returns the index, from 0, of a choice that is numbered from `first`."""
    number = value if isinstance(value, int) and not isinstance(value, bool) else None
    if isinstance(value, str) and value.isdecimal():
        number = int(value)
    if number is None or not first <= number < first + count:
        raise DataError(f"{where}: a number from {first} to {first + count - 1} expected, got {json.dumps(value)}")
    return number - first


def _position(value: Any, where: str, *, names: list[str]) -> int:
    """Returns the index of a choice that is called by a letter."""
    if value not in names:
        raise DataError(f"{where}: one of {', '.join(names)} expected, got {json.dumps(value)}")
    return names.index(value)
