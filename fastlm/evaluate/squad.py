"""Exact match and F1 of SQuAD, with the values of the official scripts of 1.1 and 2.0.

Texts are compared after `normalise`. F1 is that of the multisets of words. Each question counts with its best answer.
Values are in percent, as the scripts print them; `scores.SCORES` has fractions.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from fastlm.data.labelled.examples import Notify, SpanExample, to_stderr

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII: curly quotes and en dashes stay


def normalise(text: str) -> str:
    """Returns the text in lower case, then without punctuation, then without articles and needless white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(answer: str, prediction: str) -> float:
    """Returns 1 if the normalised texts are equal, else 0."""
    return float(normalise(answer) == normalise(prediction))


def f1_1(answer: str, prediction: str) -> float:
    """Returns the F1 of 1.1: 0 if both texts normalise to nothing."""
    answer, prediction = normalise(answer).split(), normalise(prediction).split()
    common = sum((Counter(answer) & Counter(prediction)).values())
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(answer)
    return 2 * precision * recall / (precision + recall)


def f1_2(answer: str, prediction: str) -> float:
    """Returns the F1 of 2.0: 1 if both texts normalise to nothing."""
    if not normalise(answer) or not normalise(prediction):
        return exact(answer, prediction)
    return f1_1(answer, prediction)


def best(score: Callable[[str, str], float], answers: Iterable[str], prediction: str) -> float:
    """Returns the highest score over the answers."""
    return max(score(answer, prediction) for answer in answers)


def answers_2(answers: Iterable[str]) -> list[str]:
    """Returns the answers that 2.0 compares with: those that normalise to something, or else the empty answer."""
    return [answer for answer in answers if normalise(answer)] or [""]


def score_squad1(
    examples: Sequence[SpanExample], predictions: Mapping[str, str], notify: Notify = to_stderr
) -> dict[str, float]:
    """Returns "exact_match" and "f1", as the script of 1.1 does. predictions: {id: text}.

    Questions without a prediction count as 0, and `notify` is told how many. Raises ValueError without questions, and
    for a question without answers.
    """
    _check_questions(examples)
    for example in examples:
        if not example.answers:
            raise ValueError(f"{example.where}: question {example.id} has no answer; SQuAD 1.1 needs one")
    if absent := [example.id for example in examples if example.id not in predictions]:
        notify(f"{len(absent)} of {len(examples)} questions have no prediction and count as 0 (first: {absent[0]})")
    given = [(texts(example), predictions[example.id]) for example in examples if example.id in predictions]
    return {
        "exact_match": 100 * sum(best(exact, *pair) for pair in given) / len(examples),
        "f1": 100 * sum(best(f1_1, *pair) for pair in given) / len(examples),
    }


class _Scored(NamedTuple):
    """Holds a question's scores before the threshold, and its odds of no answer."""

    has_answer: bool
    answered: bool
    exact: float
    f1: float
    odds: float


def score_squad2(
    examples: Sequence[SpanExample],
    predictions: Mapping[str, str],
    null_odds: Mapping[str, float] | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """Returns the figures of the script of 2.0 under its names: "exact", "f1", "total", "HasAns_f1", "best_f1", ...

    predictions: {id: text}, "" for no answer. null_odds: {id: probability or odds of no answer}; above `threshold`, the
    question counts as unanswered whatever the prediction is. With null_odds there are also "best_exact", "best_f1" and
    their thresholds, "best_exact_thresh" and "best_f1_thresh". Figures of questions with (HasAns_) and without an
    answer (NoAns_) are there if such questions are.

    Raises ValueError without questions, and if a question has no prediction or no odds: the script then fails, too.
    """
    _check_questions(examples)
    for name, given in (("prediction", predictions), ("null odds", null_odds)):
        absent = [e.id for e in examples if given is not None and e.id not in given]
        if absent:
            raise ValueError(f"{len(absent)} of {len(examples)} questions have no {name} (first: {absent[0]})")
    by_id = {}
    for example in examples:
        pair = answers_2(texts(example)), predictions[example.id]
        odds = 0.0 if null_odds is None else null_odds[example.id]
        by_id[example.id] = _Scored(bool(example.answers), bool(pair[1]), best(exact, *pair), best(f1_2, *pair), odds)
    scored = list(by_id.values())
    figures = _means(scored, threshold)
    for prefix, has_answer in (("HasAns", True), ("NoAns", False)):
        if part := [s for s in scored if s.has_answer is has_answer]:
            figures |= {f"{prefix}_{name}": value for name, value in _means(part, threshold).items()}
    if null_odds is not None:
        in_order = [by_id[id] for id in null_odds if id in by_id]  # the script's order of questions with equal odds
        for name in ("exact", "f1"):
            figures[f"best_{name}"], figures[f"best_{name}_thresh"] = _best_threshold(in_order, name)
    return figures


def texts(example: SpanExample) -> tuple[str, ...]:
    """Returns the texts of an example's answers, all of them."""
    return tuple(answer.text for answer in example.answers)


def _check_questions(examples: Sequence[SpanExample]) -> None:
    if not examples:
        raise ValueError("examples: at least one question expected, got none")


def _means(scored: Sequence[_Scored], threshold: float) -> dict[str, float]:
    def mean(name: str) -> float:
        values = (getattr(s, name) if s.odds <= threshold else float(not s.has_answer) for s in scored)
        return 100 * sum(values) / len(scored)

    return {"exact": mean("exact"), "f1": mean("f1"), "total": len(scored)}


def _best_threshold(scored: Sequence[_Scored], name: str) -> tuple[float, float]:
    """Returns the best score over all thresholds, and the first threshold (0 if no answer at all is best) with it.

    As in the script: the questions are answered one after the other, by rising odds. An answer gains its score, or
    loses the point of a question without an answer. Questions of equal odds are not answered together.
    """
    total = best = sum(not s.has_answer for s in scored)
    threshold = 0.0
    for s in sorted(scored, key=lambda s: s.odds):
        total += getattr(s, name) if s.has_answer else -float(s.answered)
        if total > best:
            best, threshold = total, s.odds
    return 100 * best / len(scored), threshold
