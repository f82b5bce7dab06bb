"""Saves models and tokenizers as folders that transformers loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastlm.data.tokenizer import Tokenizer
from fastlm.integrations.transformers.weights import export_config, export_weights
from fastlm.models import BERT, GPT1, files


def save_pretrained(
    model: GPT1 | BERT,
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    *,
    task: Mapping[str, Any] | None = None,
) -> None:
    """Writes a folder that transformers' `AutoModelFor...` and `AutoTokenizer` load.

    task: what a fine-tuned model does, as in task.json ("kind", "labels", "head" and input options); its labels are
        id2label. Raises OSError, or ValueError, with a sentence, for a model that transformers has no class for.
    """
    raise NotImplementedError


def save(model: GPT1 | BERT, folder: str | Path) -> None:
    """Writes a folder that transformers' `from_pretrained` reads. Raises OSError, or ValueError as `export_config`."""
    files.write(folder, export_config(model.config), export_weights(model))
