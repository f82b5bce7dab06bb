"""Describes the task of a fine-tuned model: the content of task.json, beside its config.json. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fastlm._options import list_problems
from fastlm.data.corpus import DataError
from fastlm.data.labelled.examples import KINDS, Kind

TASK_FILE = "task.json"
HEADS: dict[Kind, str] = {  # the name of each kind's head in a model
    "classification": "classes",
    "regression": "score",
    "choice": "choice",
    "span": "span",
    "tagging": "tags",
}


@dataclass(frozen=True)
class Description:
    """Describes the task of a model: all that turns new examples into inputs, and outputs into predictions.

    labels: the classes, or the tags, in the order of the head's units. pairs: whether it reads pairs of texts, or None
    if that is not known. scores: names in `evaluate.scores.SCORES`; the first one selects the best model. no_answer:
    whether a question may have no answer (SQuAD 2.0). null_threshold: the score of no answer minus that of the best
    answer above which there is none.
    """

    kind: Kind
    labels: tuple[str, ...] = ()
    pairs: bool | None = None
    format: str = ""
    scores: tuple[str, ...] = ()
    max_length: int = 128
    doc_stride: int = 128
    max_question: int = 64
    max_answer: int = 30
    n_best: int = 20
    document_context: bool = False
    both_orders: bool = False
    no_answer: bool = False
    null_threshold: float = 0.0
    head_dropout: float = 0.1
    head_bias: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: one of {', '.join(KINDS)} expected, got {self.kind!r}")

    @property
    def head(self) -> str:
        """Returns the name of the task's head in the model."""
        return HEADS[self.kind]

    def to_json(self) -> dict[str, Any]:
        """Returns the content of task.json."""
        return asdict(self) | {"labels": list(self.labels), "scores": list(self.scores)}

    @classmethod
    def read(cls, path: Path) -> Description:
        """Reads a task.json. Raises DataError, naming it, if it is missing or anything else."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: the description of a task expected ({error})") from None
        if not isinstance(values, dict):
            raise DataError(f"{path}: a JSON object expected, got a {type(values).__name__}")
        return cls.from_json(values, str(path))

    @classmethod
    def from_json(cls, values: dict[str, Any], source: str = TASK_FILE) -> Description:
        """Returns the description that `to_json` wrote; what is missing has its default, except the kind.

        Raises DataError, naming `source`, for anything else.
        """
        unknown = values.keys() - {f.name for f in fields(cls)}
        if unknown or "kind" not in values:
            problems = list_problems(missing={"kind"} - values.keys(), unknown=unknown)
            raise DataError(f"{source}: not the description of a task: {problems}")
        try:
            return cls(**values | {name: tuple(values.get(name, ())) for name in ("labels", "scores")})
        except (TypeError, ValueError) as error:
            raise DataError(f"{source}: {error}") from None
