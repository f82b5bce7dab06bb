"""Answers from the scores of starts and ends, as in BERT's run_squad.py (section 4.2 and 4.3).

A candidate is a start and an end in the context, at most `max_answer` tokens, of the `n_best` likeliest starts and
ends of a window. Its start must have its best context in that window (`best_windows`), so that no span counts twice.
Candidates of all windows compete by start + end. An answer's text is that of the context; BERT's code aligns it to word
pieces by spelling, and returns the whole words if that fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastlm.data.inputs import best_windows
from fastlm.data.labelled.description import Description

NO_SPAN_ODDS = 1e9  # the null odds of a question for which there is no candidate; JSON has no infinity


class Window(NamedTuple):
    """Holds a window of a context: its tokens [begin, end), and the position of the first one in the sequence.

    scores: (2, length) of starts and ends, at all positions of the sequence; those at 0 are the score of no answer.
    """

    begin: int
    end: int
    position: int
    scores: np.ndarray


class Candidate(NamedTuple):
    """Holds a span: its first and last token in the context, and its score."""

    first: int
    last: int
    score: float


def find_answer(context: str, offsets: np.ndarray, windows: Sequence[Window], task: Description) -> dict[str, Any]:
    """Returns the "answer" to a question, its "probability" among the best, its "null_odds", and the "n_best".

    offsets: (tokens, 2), the characters of each context token. Null odds are the score of no answer, the least of all
    windows, minus that of the best candidate.
    """
    ranked = _distinct(context, offsets, _candidates(windows, task), task.n_best)
    null = min(float(window.scores[:, 0].sum()) for window in windows)
    odds = null - ranked[0][1] if ranked else NO_SPAN_ODDS
    if task.no_answer or not ranked:
        ranked = sorted([*ranked, ({"text": "", "start": None}, null)], key=lambda answer: -answer[1])
    weights = np.exp(np.array([score for _, score in ranked]) - ranked[0][1])
    shares = (weights / weights.sum()).tolist()
    n_best = [answer | {"probability": share} for (answer, _), share in zip(ranked, shares, strict=True)]
    return choose_answer({"null_odds": odds, "n_best": n_best}, task)


def choose_answer(found: dict[str, Any], task: Description) -> dict[str, Any]:
    """Returns `found` with its "answer" and "probability", by the threshold of the task.

    The answer is "" if there is no candidate, or if the task has questions without an answer and the null odds exceed
    its threshold.
    """
    is_null = task.no_answer and found["null_odds"] > task.null_threshold
    fitting = (answer for answer in found["n_best"] if (answer["start"] is None) == is_null)
    chosen = next(fitting, found["n_best"][0])
    return found | {"answer": chosen["text"], "probability": chosen["probability"]}


def best_text(found: dict[str, Any]) -> str:
    """Returns the best answer that is not empty, or "" if there is no candidate."""
    return next((answer["text"] for answer in found["n_best"] if answer["start"] is not None), "")


def _candidates(windows: Sequence[Window], task: Description) -> list[Candidate]:
    """Returns the candidates of all windows, the best first."""
    best = np.array(best_windows([(w.begin, w.end) for w in windows], windows[-1].end))
    found = [c for number, window in enumerate(windows) for c in _in_window(window, best == number, task)]
    return sorted(found, key=lambda candidate: -candidate.score)


def _in_window(window: Window, is_best: np.ndarray, task: Description) -> Iterator[Candidate]:
    """Yields the candidates of a window. is_best: whether each context token has its best context there."""
    tops = np.argsort(-window.scores, axis=1, kind="stable")[:, : task.n_best] - window.position
    starts, ends = (top[(top >= 0) & (top < window.end - window.begin)] for top in tops)
    size = ends - starts[:, None] + 1
    fits = (size >= 1) & (size <= task.max_answer) & is_best[starts + window.begin][:, None]
    for i, j in np.argwhere(fits):
        start, end = int(starts[i]), int(ends[j])
        score = float(window.scores[0, start + window.position]) + float(window.scores[1, end + window.position])
        yield Candidate(start + window.begin, end + window.begin, score)


def _distinct(
    context: str, offsets: np.ndarray, candidates: Sequence[Candidate], count: int
) -> list[tuple[dict[str, Any], float]]:
    """Returns (answer, score) of the best candidates that differ in their text, at most `count`."""
    found: dict[str, tuple[dict[str, Any], float]] = {}
    for candidate in candidates:
        begin, end = int(offsets[candidate.first, 0]), int(offsets[candidate.last, 1])
        text = context[begin:end]
        if text not in found:
            found[text] = {"text": text, "start": begin}, candidate.score
        if len(found) == count:
            break
    return list(found.values())
