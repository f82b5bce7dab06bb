"""From a batch to a model's outputs, and from outputs to predictions, for each kind of task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastlm.data.labelled.description import Description
from fastlm.data.labelled.encode import Encodings
from fastlm.data.labelled.examples import Example
from fastlm.inference.answers import Window, find_answer
from fastlm.models import Model

OUTSIDE = "O"  # the tag of a word that is not predicted: it has no piece, or did not fit


def read_outputs(model: Model, task: Description, hidden: Tensor, batch: dict[str, Tensor]) -> list[np.ndarray]:
    """Returns the outputs of the task's head for each item of a padded batch, in float64.

    classification, choice   (C,) probabilities
    regression               () the number
    span                     (2, length) scores of starts and ends
    tagging                  (2, length) the likeliest tag of each token, and its probability
    """
    if task.kind == "span":
        scores = torch.stack(model.logits(task.head, hidden), 1)
        return _by_length(scores, batch["lengths"])
    if task.kind == "tagging":
        best = model.logits(task.head, hidden).double().softmax(-1).max(-1)
        return _by_length(torch.stack([best.indices.double(), best.values], 1), batch["lengths"])
    logits = model.logits(task.head, hidden, batch["rows"]).double()
    return list((logits if task.kind == "regression" else logits.softmax(-1)).cpu().numpy())


def _by_length(values: Tensor, lengths: Tensor) -> list[np.ndarray]:
    """Returns values (B, 2, S) by sequence, without padding."""
    arrays = values.double().cpu().numpy()
    return [array[:, :length] for array, length in zip(arrays, lengths.tolist(), strict=True)]


def predictions(
    task: Description,
    examples: Sequence[Example],
    encodings: Encodings,
    outputs: Sequence[np.ndarray],
) -> list[dict[str, Any]]:
    """Returns a prediction per example; see `Predictor.predict`.

    encodings: of the examples, with places; outputs: of its first items. An example of which no window has an output
    gets no prediction.
    """
    if task.kind == "span":
        return _spans(task, examples, encodings, outputs)
    if task.kind == "tagging":
        return [_tags(task, *parts) for parts in zip(examples, _word_places(encodings), outputs, strict=False)]
    make = {"classification": _label, "regression": _number, "choice": _choice}[task.kind]
    return [make(task, example, output) for example, output in zip(examples, outputs, strict=False)]


def _label(task: Description, example: Example, output: np.ndarray) -> dict[str, Any]:
    probabilities = dict(zip(task.labels, output.tolist(), strict=True))
    return {"id": example.id, "label": task.labels[int(output.argmax())], "probabilities": probabilities}


def _number(task: Description, example: Example, output: np.ndarray) -> dict[str, Any]:
    return {"id": example.id, "score": float(output)}


def _choice(task: Description, example: Example, output: np.ndarray) -> dict[str, Any]:
    return {"id": example.id, "choice": int(output.argmax()), "probabilities": output.tolist()}


def _word_places(encodings: Encodings) -> list[np.ndarray]:
    """Returns for each example the positions of its words' first pieces."""
    return np.split(encodings.places["word_at"], encodings.places["word_starts"][1:-1])


def _tags(task: Description, example: Example, places: np.ndarray, output: np.ndarray) -> dict[str, Any]:
    indices, probabilities = output
    tags = [task.labels[int(indices[at])] if at >= 0 else OUTSIDE for at in places]
    return {
        "id": example.id,
        "tags": tags,
        "probabilities": [float(probabilities[at]) if at >= 0 else None for at in places],
    }


def _spans(
    task: Description, examples: Sequence[Example], encodings: Encodings, outputs: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    places, windows = encodings.places, {}
    for item, scores in enumerate(outputs):
        window = Window(int(places["begin"][item]), int(places["end"][item]), int(encodings.second[item]), scores)
        windows.setdefault(int(encodings.example[item]), []).append(window)
    found = []
    for number, own in windows.items():
        begin, end = places["offset_starts"][number : number + 2]
        answer = find_answer(examples[number].context, places["offsets"][begin:end], own, task)
        found.append({"id": examples[number].id} | answer)
    return found
