"""SQuAD 1.1 and 2.0: reading, and the files of predictions that the official scripts take."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastlm.data.corpus import DataError
from fastlm.data.labelled.examples import Answer, SpanExample
from fastlm.data.labelled.lines import expect_list, expect_object, expect_text, missing, read_json
from fastlm.files import write_json


def read_squad(path: Path, labelled: bool, *, version: int) -> list[SpanExample]:
    """Reads a file of SQuAD 1.1 (version=1) or 2.0 (version=2); `plausible_answers` are not read.

    Raises DataError, which names the question, for an answer that is not at its place in the context, a question of
    1.1 without an answer, and a question of 2.0 that has answers and is impossible, or neither.
    """
    text, content = read_json(path)
    examples, offset, line = [], 0, 1
    for context, question, where in _questions(content, str(path)):
        id = question.get("id")
        if not isinstance(id, str):
            raise DataError(f'{where}: a question whose "id" is a string expected, got {id!r}')
        # The line of the question: that of its id, which is in the text after the ids before it.
        found = text.find(json.dumps(id, ensure_ascii=False), offset)
        if found >= 0:
            line, offset = line + text.count("\n", offset, found), found
        examples.append(span_example(question, context, f"{path}:{line}", id, labelled, version))
    if not examples:
        raise DataError(f"{path}: no questions in it")
    return examples


def _questions(content: dict[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yields (context, question, where) for each question of a file."""
    for a, article in enumerate(expect_list(content, "data", where)):
        in_article = f"{where}: data[{a}]"
        for p, paragraph in enumerate(expect_list(expect_object(article, in_article), "paragraphs", in_article)):
            in_paragraph = f"{in_article}.paragraphs[{p}]"
            context = expect_text(expect_object(paragraph, in_paragraph), "context", in_paragraph)
            for q, question in enumerate(expect_list(paragraph, "qas", in_paragraph)):
                in_question = f"{in_paragraph}.qas[{q}]"
                yield context, expect_object(question, in_question), in_question


def span_example(
    record: dict[str, Any], context: str, where: str, id: str, labelled: bool, version: int
) -> SpanExample:
    """Returns the example of {"question", "answers": [{"text", "answer_start"}], "is_impossible" (2.0)}.

    labelled=False: "answers" may be missing. Raises DataError as `read_squad` does.
    """
    place = f"{where}: question {id}"
    question = expect_text(record, "question", place).strip()
    if "answers" not in record:
        if labelled:
            raise missing(place, "answers", record)
        return SpanExample(id, question, context, (), False, where)
    answers = tuple(_answer(answer, context, place) for answer in expect_list(record, "answers", place))
    impossible = record.get("is_impossible", not answers)
    if version == 1 and (not answers or impossible):
        raise DataError(
            f"{place} has no answer; in SQuAD 1.1 each question has one (the format squad2 has questions without)"
        )
    if bool(answers) == bool(impossible):
        raise DataError(
            f'{place}: "is_impossible" is {json.dumps(impossible)}, but it has {len(answers) or "no"} answers'
        )
    return SpanExample(id, question, context, answers, bool(impossible), where)


def _answer(value: Any, context: str, where: str) -> Answer:
    record = expect_object(value, f'{where}: "answers"')
    text, start = expect_text(record, "text", where), record.get("answer_start")
    if isinstance(start, bool) or not isinstance(start, int):
        raise DataError(f'{where}: "answer_start": a character\'s number expected, got {json.dumps(start)}')
    if not text:
        raise DataError(f"{where}: an answer with text expected, got an empty one")
    if start < 0 or not context.startswith(text, start):
        found = context.find(text)
        place = f"it begins at {found}" if found >= 0 else "it is nowhere in the context"
        raise DataError(f"{where}: the answer {text[:60]!r} is not in its context at character {start}; {place}")
    return Answer(text, start)


def write_predictions(folder: Path, ids: Sequence[str], texts: Sequence[str]) -> list[Path]:
    """Writes predictions.json, {id: text}, which the official scripts of 1.1 and 2.0 take. Returns [its path]."""
    return [_write(folder, "predictions.json", ids, texts)]


def write_predictions2(folder: Path, ids: Sequence[str], predictions: Sequence[tuple[str, float]]) -> list[Path]:
    """Writes predictions.json, {id: text}, and null_odds.json, {id: odds}, for the script of 2.0. Returns their paths.

    predictions: (text, "" for no answer; odds). The odds are the score of no answer minus that of the best answer, so
    a larger number means that there is none.
    """
    return [
        _write(folder, "predictions.json", ids, [text for text, _ in predictions]),
        _write(folder, "null_odds.json", ids, [float(odds) for _, odds in predictions]),
    ]


def read_predictions(path: Path) -> dict[str, Any]:
    """Reads {id: text} or {id: odds}, as the official scripts do."""
    return read_json(path)[1]


def _write(folder: Path, name: str, ids: Sequence[str], values: Sequence[Any]) -> Path:
    if len(ids) != len(values) or len(set(ids)) != len(ids):
        raise ValueError(f"{name}: a prediction per id expected, got {len(values)} for {len(set(ids))} different ids")
    folder.mkdir(parents=True, exist_ok=True)
    content: Mapping[str, Any] = dict(zip(ids, values, strict=True))
    write_json(folder / name, content)
    return folder / name
