"""Saves models and tokenizers as folders that transformers loads."""

from __future__ import annotations

from pathlib import Path

from fastlm.data.labelled.description import TASK_FILE, Description
from fastlm.data.tokenizer import Tokenizer
from fastlm.files import write_json
from fastlm.integrations.transformers.config import export_config
from fastlm.integrations.transformers.tokenizer_files import padding_id, write_tokenizer
from fastlm.integrations.transformers.weights import export_weights
from fastlm.models import BERT, GPT1, GPT1Config, files


def save_pretrained(
    model: GPT1 | BERT, folder: str | Path, tokenizer: Tokenizer | None = None, *, task: Description | None = None
) -> None:
    """Writes a folder that transformers' `AutoModelFor...` and `AutoTokenizer` load, and `from_pretrained` here.

    Args:
        model: what it is pretrained with, or one task's head, decides on the class: see the table in heads.py.
        folder: made if needed; each file is written atomically.
        tokenizer: its ids are the model's. GPT-1's classes for whole sequences cannot do without its padding token.
        task: what a fine-tuned model does. Its labels become id2label; task.json keeps what transformers has no place
            for, and transformers ignores it.

    Raises OSError, or ValueError, with a sentence, for a model that transformers has no class for.
    """
    config, weights = export_config(model.config, model.heads, task), export_weights(model, task)
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"tokenizer: at most the model's {model.config.vocab_size} entries expected, got {tokenizer.vocab_size}"
        )
    padding = None if tokenizer is None else padding_id(tokenizer)
    if padding is not None:
        config["pad_token_id"] = padding
    elif isinstance(model.config, GPT1Config) and task is not None and task.kind in ("classification", "regression"):
        raise ValueError(
            f"tokenizer: the one that the model was fine-tuned with expected, since {config['architectures'][0]} reads "
            "the last token that is not padding"
        )
    files.write(folder, config, weights)
    if tokenizer is not None:
        write_tokenizer(tokenizer, folder, model.config.context)
    if task is not None:
        write_json(Path(folder) / TASK_FILE, task.to_json())


def save(model: GPT1 | BERT, folder: str | Path) -> None:
    """Writes config.json and model.safetensors of a model without a task's head, as `save_pretrained` does."""
    save_pretrained(model, folder)
