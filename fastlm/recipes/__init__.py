"""Recipes with the papers' values, one file per paper. `--model` takes their names. Imports no torch."""

from __future__ import annotations

from typing import Any

from fastlm.recipes import bert, gpt1
from fastlm.recipes.base import SECTIONS, Recipe, all_options

__all__ = ["OPTIONS", "RECIPES", "Recipe", "from_record", "resolve"]

RECIPES: dict[str, Recipe] = gpt1.RECIPES | bert.RECIPES
OPTIONS = all_options(RECIPES)

# Names of families: the recipe is the paper's size if there is a CUDA device, else the small one.
FAMILIES = {"gpt1": ("gpt1_full", "gpt1_small"), "bert": ("bert_base", "bert_small")}
DEFAULT = "gpt1"

# Names in format 1 of a run folder's config.json, and their names today.
_OLD_NAMES = {"gpt1": "gpt1_full"}
_OLD_OPTIMIZERS = {"adamw": True, "bert": False}  # their value of bias_correction


def resolve(name: str, *, cuda: bool) -> tuple[Recipe, str | None]:
    """Returns the recipe with the name that `--model` gives, and, for a family, a sentence that explains the choice.

    Raises ValueError for an unknown name.
    """
    if name in FAMILIES:
        full, small = FAMILIES[name]
        if cuda:
            why = f"model {full}: the paper's size, since there is a CUDA device (--model {small} for the small one)"
            return RECIPES[full], why
        return RECIPES[small], f"model {small}, since there is no CUDA device (--model {full} for the paper's size)"
    if name not in RECIPES:
        raise ValueError(f"model: one of {', '.join([*FAMILIES, *sorted(RECIPES)])} expected, got {name!r}")
    return RECIPES[name], None


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
