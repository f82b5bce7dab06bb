"""The base of the fine-tuning tasks: labelled examples, a pretrained model with a new head, and the format's scores."""

from __future__ import annotations

from pathlib import Path

from fastlm.data.labelled.config import LabelledConfig
from fastlm.tasks.base import Task


class LabelledTask(Task):
    """Learns from labelled examples, with the model in `start`: a run folder, a model's folder, or transformers'.

    metric_names: the format's scores, then the losses. best: the name of the metric that selects the best model, the
    format's first score; larger is better.
    """

    best: str

    def __init__(self, start: Path, labelled: LabelledConfig):
        self.start, self.labelled = start, labelled


def labelled_task(start: str | Path, labelled: LabelledConfig) -> LabelledTask:
    """Returns the task of a format's kind. Reads no data yet.

    `dataset(split, length, ...)` takes the one length `labelled.max_length`, so phases are ((1.0, max_length),).
    Raises ValueError for an unknown format or for options that it does not have.
    """
    raise NotImplementedError
