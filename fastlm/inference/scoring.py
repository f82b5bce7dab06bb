"""Scores of predictions, and the threshold of no answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastlm.data.labelled.description import Description
from fastlm.data.labelled.examples import Example, Kind
from fastlm.data.labelled.formats import find_format
from fastlm.evaluate.scores import score_all, targets
from fastlm.evaluate.squad import score_squad2
from fastlm.inference.answers import best_text, choose_answer

_PREDICTED: dict[Kind, str] = {  # the entry of a prediction that is scored
    "classification": "label",
    "regression": "score",
    "choice": "choice",
    "span": "answer",
    "tagging": "tags",
}


def score_predictions(
    task: Description, examples: Sequence[Example], predicted: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Returns the task's scores, {name: value}, of a prediction per labelled example."""
    values = [prediction[_PREDICTED[task.kind]] for prediction in predicted]
    if task.kind == "classification":
        index = {label: number for number, label in enumerate(task.labels)}
        values = [index[value] for value in values]
    group = find_format(task.format).group if task.format else None
    groups = [group(example) for example in examples] if group else None
    return score_all(task.scores, targets(examples, task.labels), values, groups)


def tune_threshold(
    task: Description, examples: Sequence[Example], predicted: Sequence[dict[str, Any]]
) -> tuple[Description, list[dict[str, Any]]]:
    """Returns the task with the null threshold that gives the best F1, and the predictions that follow from it.

    The threshold is that of SQuAD 2.0's script. Where no answer at all is best, the script prints 0, which may answer
    questions; then the threshold is below all null odds.
    """
    odds = {e.id: p["null_odds"] for e, p in zip(examples, predicted, strict=True)}
    texts = {e.id: best_text(p) for e, p in zip(examples, predicted, strict=True)}
    figures = score_squad2(examples, texts, odds)
    threshold = figures["best_f1_thresh"]
    unanswered = 100 * sum(not e.answers for e in examples) / len(examples)
    if figures["best_f1"] == unanswered:
        threshold = min(odds.values()) - 1.0
    tuned = replace(task, null_threshold=threshold)
    return tuned, [choose_answer(prediction, tuned) for prediction in predicted]
