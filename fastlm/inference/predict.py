"""Predicts with fine-tuned models: `fastlm predict RUN FILE`, `fastlm evaluate RUN FILE`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from fastlm.data.labelled.description import Description
from fastlm.data.labelled.examples import Example, Kind
from fastlm.data.tokenizer import Tokenizer
from fastlm.models import Model


class Predictor:
    """Holds a fine-tuned model, its tokenizer and the description of its task."""

    def __init__(self, model: Model, tokenizer: Tokenizer, task: Description):
        self.model, self.tokenizer, self.task = model, tokenizer, task

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto", backend: str = "auto") -> Self:
        """Loads a fine-tuned model from a run folder, a model's folder, or a folder of transformers'."""
        raise NotImplementedError

    def predict(self, examples: Iterable[Example], *, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """Yields a prediction per example, in order; reads `batch_size` examples ahead.

        classification  {"id", "label", "probabilities": {label: p}}
        regression      {"id", "score"}
        choice          {"id", "choice", "probabilities": [p per choice]}
        span            {"id", "answer", "probability", "null_odds", "n_best": [{"text", "start", "probability"}]}
        tagging         {"id", "tags": [tag per word], "probabilities": [p per word, of its tag]}
        """
        raise NotImplementedError

    def scores(self, examples: Iterable[Example], *, batch_size: int = 32) -> dict[str, float]:
        """Returns the scores of the model on labelled examples, {name: value}, as in the table of a report."""
        raise NotImplementedError


def examples_of_lines(lines: Iterable[str], kind: Kind, source: str = "stdin") -> Iterator[Example]:
    """Yields the examples of a stream, one JSON object per line: the fields of the kind's example, labels left out.

    A line that is no JSON object is a text. Raises DataError, naming `source` and the line.
    """
    raise NotImplementedError
