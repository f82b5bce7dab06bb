"""Loads a trained model and its tokenizer from a run folder, a model's folder, or a folder of transformers'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastlm import models
from fastlm.data import tokenizer
from fastlm.data.tokenizer import Tokenizer
from fastlm.device import find_device
from fastlm.models import Model
from fastlm.nn import Head
from fastlm.run_folder import RunError, RunFolder


def load_trained(run: str | Path, device: str = "auto", *, head: str | None = None) -> tuple[Model, Tokenizer]:
    """Returns the model of a run, in eval mode, and its tokenizer. An unfinished run gives its last checkpoint's model.

    head: a head that the model must have. Raises RunError if there is no such run or head, DeviceError if there is no
    such device, and the errors of `models.load`.
    """
    folder = RunFolder(run)
    model = models.load(folder.newest_model())
    if head is not None and head not in model.head_names:
        others = ", ".join(repr(name) for name in model.head_names) or "no head"
        raise RunError(f"run: {run} holds a {type(model).__name__} with {others}; a model with {head!r} is needed")
    return model.to(find_device(device)).eval(), tokenizer.load(folder.tokenizer_file)


def load_pretrained(
    source: str | Path,
    heads: Mapping[str, Head] | None = None,
    *,
    device: str = "cpu",
    backend: str = "auto",
    drop: Sequence[str] = (),
) -> tuple[Model, Tokenizer]:
    """Returns the model, in eval mode, and the tokenizer of a run folder, a fastlm model's folder (whose tokenizer is
    in it or beside it), a folder of transformers', or a model of its hub.

    heads: by name; None gives the heads that the source has, with the task's head of a fine-tuned model. A head for
        whose name the source has tensors gets those, another one stays freshly initialised.
    drop: for transformers' folders, tensors to leave out (see `from_pretrained`).

    Raises RunError, DeviceError, and the errors of `from_pretrained`.
    """
    raise NotImplementedError


def read_task(source: str | Path) -> dict[str, Any] | None:
    """Returns what a fine-tuned model does, the content of task.json, or None for a model without such a task.

    For a folder of transformers' it is made from config.json: "labels" are ordered by id2label.
    """
    raise NotImplementedError
