"""Loads models and tokenizers from folders that transformers wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastlm.data.tokenizer import Tokenizer
from fastlm.integrations.transformers.weights import convert
from fastlm.models import BERT, GPT1, files
from fastlm.nn import Head


class Pretrained(NamedTuple):
    """Holds what a folder has.

    tokenizer: None if the folder has no tokenizer. task: what a fine-tuned model does, as in task.json; None for other
    models. dropped: tensors left out by `drop`. fresh: parameters that the folder has no tensor for, freshly
    initialised.
    """

    model: BERT | GPT1
    tokenizer: Tokenizer | None
    task: dict[str, Any] | None
    dropped: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()


def from_pretrained(
    source: str | Path,
    heads: Mapping[str, Head] | None = None,
    *,
    drop: Sequence[str] = (),
    backend: str = "auto",
) -> Pretrained:
    """Loads a model of transformers from a folder, or from the hub by its name if huggingface_hub is installed.

    Weights are safetensors, whole or sharded, or else pytorch_model.bin, unpickled as tensors alone (weights_only).

    heads: by name, as in `Model.load`; None gives the heads that the folder has tensors for. drop: names of tensors, or
        what their names begin with ("cls.species"), to leave out.

    Raises FileNotFoundError, or ValueError, naming the file, for a model, tensor or tokenizer that does not fit.
    """
    raise NotImplementedError


def load(folder: str | Path, *, backend: str = "auto", fresh_heads: bool = False) -> GPT1 | BERT:
    """Loads our model from a folder that transformers' `save_pretrained` wrote: config.json and model.safetensors.

    Pickles are never loaded. Raises FileNotFoundError, or ValueError for a model, file or tensor that does not fit.
    """
    config, weights = files.read_config(folder), files.read_weights(folder)
    return convert(config, weights, backend=backend, fresh_heads=fresh_heads, source=str(Path(folder) / files.WEIGHTS))
