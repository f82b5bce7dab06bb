"""Recipes with the papers' values, one file per paper. `--model` takes their names. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastlm._options import options
from fastlm.recipes import bert, gpt1
from fastlm.recipes.base import SECTIONS, Recipe, all_options

__all__ = ["OPTIONS", "RECIPES", "Recipe", "fitting", "from_record", "leaves_size_open", "resolve"]

RECIPES: dict[str, Recipe] = gpt1.RECIPES | bert.RECIPES
OPTIONS = all_options(RECIPES)

# Names whose size depends on the machine: the paper's size if there is a CUDA device, else the largest of the others
# that makes enough updates in the minutes of the run.
FAMILIES = {"gpt1": ("gpt1_full", "gpt1_small", "gpt1_mini"), "bert": ("bert_base", "bert_small", "bert_mini")}
# After 31 updates gpt1_small's loss is still above the unigram model's; after 200, gpt1_mini's is a nat below it.
ENOUGH_UPDATES = 300
STEP_RATE = 0.5  # FLOP/s of a whole step, relative to those of products (measured: 0.5 to 0.7 on an EPYC core)
DEFAULT = "gpt1"

# Names in format 1 of a run folder's config.json, and their names today.
_OLD_NAMES = {"gpt1": "gpt1_full"}
_OLD_OPTIMIZERS = {"adamw": True, "bert": False}  # their value of bias_correction


def resolve(name: str, *, cuda: bool) -> tuple[Recipe, str | None]:
    """Returns the recipe with the name that `--model` gives, and, for a family, a sentence that explains the choice.

    Raises ValueError for an unknown name.
    """
    if name in FAMILIES:
        full, small, *_ = FAMILIES[name]
        if cuda:
            why = f"model {full}: the paper's size, since there is a CUDA device (--model {small} for the small one)"
            return RECIPES[full], why
        return RECIPES[small], f"model {small}, since there is no CUDA device (--model {full} for the paper's size)"
    if name not in RECIPES:
        raise ValueError(f"model: one of {', '.join([*FAMILIES, *sorted(RECIPES)])} expected, got {name!r}")
    return RECIPES[name], None


def leaves_size_open(given: Mapping[str, Any]) -> bool:
    """Returns whether the given options leave the size of a family's model and of its updates to `fitting`."""
    model = {f.name for recipe in RECIPES.values() for f in options(recipe.model)}
    return not given.keys() & (model | {"vocab_size", "steps", "epochs", "phases", "batch_size", "accumulation"})


def fitting(name: str, minutes: float | None, flops: float) -> tuple[Recipe, str]:
    """Returns a family's largest recipe that makes enough updates on this CPU, else the smallest; and the reason.

    Args:
        minutes: the length of the run; None: the recipe's.
        flops: floating-point operations per second of matrix products on this machine.
    """
    too_large = []
    for size in FAMILIES[name][1:]:
        recipe = RECIPES[size]
        length = minutes or recipe.train.minutes
        updates = round(60 * length * STEP_RATE * flops / recipe.update_flops())
        if updates >= ENOUGH_UPDATES:
            break
        too_large.append(size)
    why = f"model {recipe.name}: about {updates} updates in {length:g} minutes at {flops / 1e9:.0f} GFLOP/s"
    skipped = [size for size in too_large if size != recipe.name]
    return recipe, why + (f" ({', '.join(skipped)} would make fewer than {ENOUGH_UPDATES})" if skipped else "")


def from_record(record: dict[str, Any]) -> Recipe:
    """Returns the recipe that a run folder's config.json holds, in today's format or in format 1.

    Raises KeyError, TypeError or ValueError if it holds anything else.
    """
    if "config" in record:
        return _from_format_1(record["config"])
    values = {name: value for section in SECTIONS for name, value in record[section].items()}
    return RECIPES[record["recipe"]].with_options(values)


def _from_format_1(config: dict[str, Any]) -> Recipe:
    values = {name: value for name, value in config.items() if name not in ("model", "optimizer")}
    values["bias_correction"] = _OLD_OPTIMIZERS[config["optimizer"]]
    return RECIPES[_OLD_NAMES.get(config["model"], config["model"])].with_options(values)
