"""Loads a trained model and its tokenizer from a run folder, and checks what the model computes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from fastlm import models
from fastlm.data import tokenizer
from fastlm.data.tokenizer import Tokenizer
from fastlm.device import find_device
from fastlm.models import Model
from fastlm.run_folder import RunError, RunFolder


def load_trained(
    run: str | Path, device: str = "auto", *, head: str | None = None, notify: Callable[[str], None] = warnings.warn
) -> tuple[Model, Tokenizer]:
    """Returns the model of a run, in eval mode, and its tokenizer. An unfinished run gives its last checkpoint's model.

    head: a head that the model must have. notify: gets a sentence on each damaged checkpoint, whose predecessor is then
    taken. Raises RunError if there is no such run or head, or if the tokenizer is not the run's, DeviceError if there
    is no such device, and the errors of `models.load`.
    """
    folder = RunFolder(run)
    model = models.load(folder.newest_model(notify))
    if head is not None and head not in model.head_names:
        others = ", ".join(repr(name) for name in model.head_names) or "no head"
        raise RunError(f"run: {run} holds a {type(model).__name__} with {others}; a model with {head!r} is needed")
    words = tokenizer.load(folder.tokenizer_file)
    _check_tokenizer(folder, words, model)
    return model.to(find_device(device)).eval(), words


def check_logits(logits: Tensor) -> Tensor:
    """Returns logits. Raises ValueError if the largest one is infinite or NaN: then no probability can be computed."""
    if not logits.max().isfinite():
        raise ValueError(
            f"model: its logits must be finite numbers, got {logits.max().item()}; its weights are damaged or too large"
        )
    return logits


def _check_tokenizer(folder: RunFolder, words: Tokenizer, model: Model) -> None:
    """Raises RunError unless a tokenizer is the one that the model was trained with.

    The run's plan names its hash. Without a plan, as in old run folders, only the number of entries is compared.
    """
    trained, size = folder.tokenizer_hash(), model.config.vocab_size
    if words.hash == trained or (trained is None and words.vocab_size == size):
        return
    expected = f"{size} entries" if trained is None else f"hash {trained[:12]}"
    raise RunError(
        f"run: the tokenizer of {expected} expected, with which the model was trained, but {folder.tokenizer_file} has "
        f"{words.vocab_size} entries and hash {words.hash[:12]}; put back the run's own"
    )
