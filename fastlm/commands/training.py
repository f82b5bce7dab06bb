"""Trains a recipe of fine-tuning, for the commands that do so. Imports torch when it is called."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastlm.recipes.finetune import FinetuneRecipe


def train_recipe(recipe: FinetuneRecipe, folder: Path) -> dict[str, Any]:
    """Trains in a run folder, or resumes the run that is there; returns its report.

    Raises MemoryError, with what would help, if the device has not enough memory, and as `fastlm.train.loop.train`.
    """
    from fastlm.train.loop import train

    with memory_errors_explained(recipe):
        record = {"record": recipe.to_json(), "name": recipe.title}
        return train(recipe.task(), recipe.train, recipe.placement, folder, **record)


@contextlib.contextmanager
def memory_errors_explained(recipe: FinetuneRecipe) -> Iterator[None]:
    """Turns the error of a device without enough memory into a MemoryError that says what would help."""
    from fastlm.device import is_out_of_memory

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        size = f"{recipe.train.micro_batch_size} inputs of up to {recipe.labelled.max_length} tokens"
        raise MemoryError(
            f"memory: the device has not enough for {size}; give a larger accumulation, or a smaller max_length"
        ) from error
