"""Answers to questions from scores of starts and ends, against BERT's procedure written out."""

import numpy as np
import pytest

from fastlm.data.inputs import best_windows
from fastlm.data.labelled.description import Description
from fastlm.data.labelled.examples import Answer, SpanExample
from fastlm.evaluate.squad import score_squad2
from fastlm.inference.answers import NO_SPAN_ODDS, Window, best_text, choose_answer, find_answer
from fastlm.inference.scoring import score_predictions, tune_threshold

WORDS = ["anna", "wrote", "the", "book", "in", "paris", "in", "1895"]
CONTEXT = " ".join(WORDS)
ENDS = np.cumsum([len(word) + 1 for word in WORDS]) - 1
OFFSETS = np.stack([ENDS - [len(word) for word in WORDS], ENDS], 1)
SPANS = [(0, 5), (3, 8)]  # two windows
POSITION = 4  # of the context in a sequence: [CLS] two words [SEP]
TASK = Description("span", n_best=6, max_answer=3)


def windows(seed: int) -> list[Window]:
    drawn = np.random.default_rng(seed)
    return [Window(b, e, POSITION, drawn.normal(size=(2, POSITION + e - b + 1))) for b, e in SPANS]


def by_loops(given: list[Window], task: Description) -> list[tuple[str, float]]:
    """Ranks the texts as run_squad.py does: by loops over the likeliest starts and ends of each window."""
    best, found = best_windows(SPANS, len(WORDS)), []
    for number, window in enumerate(given):
        starts, ends = (sorted(range(len(s)), key=lambda i: -s[i])[: task.n_best] for s in window.scores)
        for start in starts:
            for end in ends:
                first, last = start - POSITION + window.begin, end - POSITION + window.begin
                inside = all(POSITION <= at < POSITION + window.end - window.begin for at in (start, end))
                if inside and best[first] == number and start <= end < start + task.max_answer:
                    found.append((first, last, window.scores[0][start] + window.scores[1][end]))
    found.sort(key=lambda candidate: -candidate[2])
    texts = {}
    for first, last, score in found:
        texts.setdefault(" ".join(WORDS[first : last + 1]), score)
    return list(texts.items())[: task.n_best]


@pytest.mark.parametrize("seed", range(20))
def test_the_best_answers_are_those_of_berts_procedure(seed):
    given = windows(seed)
    expected, answer = by_loops(given, TASK), find_answer(CONTEXT, OFFSETS, given, TASK)
    assert [each["text"] for each in answer["n_best"]] == [text for text, _ in expected]
    weights = np.exp([score for _, score in expected])
    assert [each["probability"] for each in answer["n_best"]] == pytest.approx((weights / weights.sum()).tolist())
    assert answer["answer"] == expected[0][0] and answer["probability"] == answer["n_best"][0]["probability"]
    null = min(window.scores[0, 0] + window.scores[1, 0] for window in given)
    assert answer["null_odds"] == pytest.approx(null - expected[0][1])


def test_no_answer_is_chosen_above_the_threshold_alone():
    task = Description("span", n_best=6, no_answer=True)
    given = windows(0)
    answer = find_answer(CONTEXT, OFFSETS, given, task)
    assert sum(each["probability"] for each in answer["n_best"]) == pytest.approx(1)
    assert [each["start"] for each in answer["n_best"]].count(None) == 1
    odds = answer["null_odds"]
    at, below = (
        choose_answer(answer, Description("span", no_answer=True, null_threshold=t)) for t in (odds, odds - 1e-9)
    )
    assert at["answer"] == best_text(answer) != "" and below["answer"] == ""
    always = choose_answer(answer, Description("span", no_answer=False, null_threshold=odds - 1e-9))
    assert always["answer"] == best_text(answer)


@pytest.mark.parametrize("no_answer", [True, False])
def test_without_a_candidate_there_is_no_answer(no_answer):
    task = Description("span", no_answer=no_answer, null_threshold=5.0)
    empty = [Window(0, 0, POSITION, np.zeros((2, 5)))]
    answer = find_answer("\u200b", np.zeros((0, 2), int), empty, task)
    assert answer["answer"] == "" and answer["null_odds"] == NO_SPAN_ODDS and best_text(answer) == ""
    assert answer["n_best"] == [{"text": "", "start": None, "probability": 1.0}]


def question(number: int, *answers: str) -> SpanExample:
    given = tuple(Answer(answer, 0) for answer in answers)
    return SpanExample(str(number), "?", CONTEXT, given, not given, f"x:{number}")


def prediction(odds: float, text: str) -> dict:
    """Returns a prediction whose best answer is `text` ("": it has none)."""
    n_best = [{"text": text, "start": 0, "probability": 0.5}] if text else []
    return {"null_odds": odds, "n_best": [*n_best, {"text": "", "start": None, "probability": 0.5}]}


SQUAD2 = Description("span", scores=("squad2_f1", "squad2_exact"), no_answer=True)


def tuned(examples, given) -> tuple[float, dict]:
    task, chosen = tune_threshold(SQUAD2, examples, given)
    scores = score_predictions(task, examples, chosen)
    odds = {e.id: p["null_odds"] for e, p in zip(examples, given, strict=True)}
    official = score_squad2(examples, {e.id: best_text(p) for e, p in zip(examples, given, strict=True)}, odds)
    assert 100 * scores["squad2_f1"] == pytest.approx(official["best_f1"])
    return task.null_threshold, scores


def test_the_threshold_is_the_official_best_one():
    examples = [question(0, "anna"), question(1), question(2, "paris"), question(3)]
    given = [prediction(-3, "anna"), prediction(2, "book"), prediction(-1, "paris"), prediction(0, "1895")]
    threshold, scores = tuned(examples, given)
    assert threshold == -1 and scores == {"squad2_f1": 1.0, "squad2_exact": 1.0}


def test_a_file_without_one_answer_and_a_model_that_never_answers():
    no_answers = [question(0), question(1)]
    threshold, scores = tuned(no_answers, [prediction(-3, "anna"), prediction(-9, "paris")])
    assert scores["squad2_f1"] == 1.0 and threshold < -9
    silent = [prediction(NO_SPAN_ODDS, "")] * 2
    assert tuned(no_answers, silent)[1]["squad2_f1"] == 1.0
    assert tuned([question(0, "anna"), question(1)], silent)[1] == {"squad2_f1": 0.5, "squad2_exact": 0.5}
    assert tuned([question(0, "anna"), question(1, "paris")], silent)[1]["squad2_f1"] == 0.0


def test_an_answer_that_normalises_to_nothing():
    """SQuAD 2.0 drops such an answer, so nothing is right; in 1.1 its exact match counts, and its F1 is 0."""
    examples = [question(0, "the")]
    for given, right in (("anna", 0.0), ("a", 1.0), ("", 1.0)):
        assert score_predictions(SQUAD2, examples, [{"answer": given}])["squad2_f1"] == right
    squad1 = Description("span", scores=("squad1_f1", "squad1_exact"))
    assert score_predictions(squad1, examples, [{"answer": "a"}]) == {"squad1_f1": 0.0, "squad1_exact": 1.0}
