"""Loads a trained model and its tokenizer from a run folder."""

from __future__ import annotations

from pathlib import Path

from fastlm import models
from fastlm.data import tokenizer
from fastlm.data.tokenizer import Tokenizer
from fastlm.device import find_device
from fastlm.models import Model
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
