"""Question answering by a span of a context (BERT, sections 4.2 and 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastlm.data.labelled.description import TASK_FILE
from fastlm.data.labelled.encode import IGNORED, Encodings
from fastlm.data.labelled.examples import SpanExample
from fastlm.evaluate.squad import best, exact, texts
from fastlm.inference.scoring import tune_threshold
from fastlm.models import Model
from fastlm.tasks.base import Notify
from fastlm.tasks.labelled import LabelledTask, shorten


class Span(LabelledTask):
    """Learns where an answer starts and ends, or that there is none (SQuAD 2.0).

    Where questions may have no answer, each evaluation tunes the threshold for that on the dev examples, and task.json
    of the model holds it; the scores are those at the threshold.
    """

    def _set_scores(self, names: Sequence[str]) -> None:
        super()._set_scores(names)
        if names[0].startswith("squad2"):
            self.metric_names["null_threshold"] = ("null threshold", ".2f")

    def check_encodings(self, examples: Sequence[SpanExample], encoded: Encodings, source: str, notify: Notify) -> None:
        starts = encoded.targets["span_starts"]
        lost, held = set(encoded.example[starts == IGNORED].tolist()), set(encoded.example[starts > 0].tolist())
        answered = {number for number, example in enumerate(examples) if example.answers}
        counts = {
            "answers not learned, as no token stands for their characters": len(lost),
            "answers learned as none, as no window holds all of them": len(answered - held - lost),
            f"questions longer than max_question {self.labelled.max_question}, and cut": len(
                set(encoded.example[encoded.cut > 0].tolist())
            ),
        }
        for what, count in counts.items():
            if count:
                notify(f"{source}: {what}: {count:,}")

    def scores(
        self, model: Model, examples: Sequence[SpanExample], predicted: list[dict[str, Any]]
    ) -> dict[str, float]:
        if not self.description.no_answer:
            return super().scores(model, examples, predicted)
        self.description, predicted[:] = tune_threshold(self.description, examples, predicted)
        model.companions[TASK_FILE] = self.description.to_json()
        scores = super().scores(model, examples, predicted)
        return scores | {"null_threshold": self.description.null_threshold}

    def show(self, example: SpanExample, prediction: dict[str, Any]) -> tuple[str, bool]:
        given = shorten(prediction["answer"]) or "no answer"
        right = [shorten(text) for text in texts(example)] or ["no answer"]
        line = f"{shorten(example.question)} {given} ({prediction['probability']:.0%}), right: {right[0]}"
        return line, best(exact, texts(example) or ("",), prediction["answer"]) == 1.0
