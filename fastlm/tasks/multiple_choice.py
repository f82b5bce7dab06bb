"""Multiple choice: one softmax over the scores of the choices (GPT-1, section 3.3; BERT, section 4.4)."""

from __future__ import annotations

from typing import Any

from fastlm.data.labelled.examples import ChoiceExample
from fastlm.tasks.labelled import LabelledTask, shorten


class MultipleChoice(LabelledTask):
    """Learns which of several choices continues a context, or answers a question about it."""

    def show(self, example: ChoiceExample, prediction: dict[str, Any]) -> tuple[str, bool]:
        chosen, right = prediction["choice"], example.label
        asked = shorten(" ".join(part for part in (example.context, example.question) if part))
        line = f"{asked}: {shorten(example.choices[chosen])} ({prediction['probabilities'][chosen]:.0%})"
        return f"{line}, right: {shorten(example.choices[right])}", chosen == right
