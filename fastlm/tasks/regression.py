"""Regression: a number for a text or a pair of texts, by its squared error (STS-B; BERT, section 4.1)."""

from __future__ import annotations

from typing import Any

from fastlm.data.labelled.examples import TextExample
from fastlm.tasks.labelled import LabelledTask, shorten


class Regression(LabelledTask):
    """Learns a number. A prediction counts as wrong in the report's examples if it is off by more than 1."""

    def show(self, example: TextExample, prediction: dict[str, Any]) -> tuple[str, bool]:
        texts = " / ".join(shorten(text) for text in (example.text, example.pair) if text is not None)
        line = f"{texts}: {prediction['score']:.2f}, labelled {example.label:.2f}"
        return line, abs(prediction["score"] - example.label) <= 1
