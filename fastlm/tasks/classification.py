"""Classification of texts and pairs of texts (BERT, section 4.1; GPT-1, sections 3.3 and 4.2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlm.data.corpus import DataError
from fastlm.data.labelled.encode import Encodings
from fastlm.data.labelled.examples import TextExample
from fastlm.tasks.base import Notify
from fastlm.tasks.labelled import LabelledTask, shorten


class Classification(LabelledTask):
    """Learns the class of a text, or of a pair: sentiment, entailment, similarity, acceptability."""

    def check_examples(self, train: Sequence[TextExample], labels: Sequence[str], notify: Notify) -> None:
        found = Counter(example.label for example in train)
        if len(found) < 2:
            raise DataError(
                f"{self.labelled.train_file}: at least two classes expected, all {len(train):,} examples have the "
                f"label {next(iter(found))!r}"
            )
        self._weights(labels, [found[label] for label in labels])

    def class_weights(self) -> list[float] | None:
        labels = self.description.labels
        return self._weights(labels, np.bincount(self.encoded.targets["labels"], minlength=len(labels)).tolist())

    def item_weights(self, encoded: Encodings) -> np.ndarray:
        weights = self.class_weights()
        return super().item_weights(encoded) if weights is None else np.array(weights)[encoded.targets["labels"]]

    def _weights(self, labels: Sequence[str], counts: Sequence[int]) -> list[float] | None:
        """Returns weights that are balanced (n / (classes * count), scikit-learn's) or given, others being 1."""
        given = self.labelled.parsed_class_weights()
        if given is None:
            return None
        if unknown := given.keys() - set(labels):
            raise ValueError(f"class_weights: labels of {', '.join(labels)} expected, got {min(unknown)!r}")
        if given:
            return [given.get(label, 1.0) for label in labels]
        return [sum(counts) / (len(counts) * max(count, 1)) for count in counts]

    def show(self, example: TextExample, prediction: dict[str, Any]) -> tuple[str, bool]:
        texts = " / ".join(shorten(text) for text in (example.text, example.pair) if text is not None)
        label = prediction["label"]
        line = f"{texts}: {label} ({prediction['probabilities'][label]:.0%}), labelled {example.label}"
        return line, label == example.label

    def confusion(self, examples: Sequence[TextExample], predicted: Sequence[dict[str, Any]]) -> dict[str, Any]:
        labels = self.description.labels
        pairs = Counter((e.label, p["label"]) for e, p in zip(examples, predicted, strict=True))
        return {"labels": list(labels), "counts": [[pairs[true, guess] for guess in labels] for true in labels]}
