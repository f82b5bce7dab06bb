"""Makes the head that a task's description asks for."""

from __future__ import annotations

from collections.abc import Sequence

from fastlm.data.labelled.description import Description
from fastlm.nn import ChoiceHead, ClassificationHead, Head, RegressionHead, SpanHead, TaggingHead


def task_head(
    task: Description,
    hidden: int,
    *,
    class_weights: Sequence[float] | None = None,
    shared_dropout: bool = False,
    backend: str = "auto",
) -> Head:
    """Returns a fresh head for a model of width `hidden`; the model calls it `task.head`.

    class_weights: of a classification, in the order of `task.labels`. shared_dropout: whether the choices of an example
    have one dropout mask, as in GPT-1's code.
    """
    if task.kind == "span":
        return SpanHead(hidden)  # BERT's code has neither dropout there, nor a choice of the bias
    options = {"dropout": task.head_dropout, "bias": task.head_bias, "backend": backend}
    if task.kind == "classification":
        return ClassificationHead(hidden, len(task.labels), class_weights=class_weights, **options)
    if task.kind == "tagging":
        return TaggingHead(hidden, len(task.labels), **options)
    if task.kind == "choice":
        return ChoiceHead(hidden, shared_dropout=shared_dropout, **options)
    return RegressionHead(hidden, **options)
