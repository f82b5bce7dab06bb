"""The papers' values, one file per paper, by the names that `--model` takes. Imports no torch."""

from __future__ import annotations

from typing import Any

from fastlm.recipes import bert, gpt1
from fastlm.recipes.base import SECTIONS, Recipe, all_options

__all__ = ["OPTIONS", "RECIPES", "Recipe", "from_record", "resolve"]

RECIPES: dict[str, Recipe] = gpt1.RECIPES | bert.RECIPES
OPTIONS = all_options(RECIPES)

# Names whose size the machine decides: the paper's where there is a CUDA device, else the small one.
FAMILIES = {"gpt1": ("gpt1_full", "gpt1_small"), "bert": ("bert_base", "bert_small")}
DEFAULT = "gpt1"

# What format 1 of a run folder's config.json calls by other names.
_OLD_NAMES = {"gpt1": "gpt1_full"}
_OLD_OPTIMIZERS = {"adamw": True, "bert": False}  # to bias_correction


def resolve(name: str, *, cuda: bool) -> tuple[Recipe, str | None]:
    """The recipe that `--model` names, and a sentence if the machine chose it.

    Raises ValueError for a name that there is not.
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
    """The recipe of a run folder's config.json, of this format or of format 1.

    Raises KeyError, TypeError or ValueError where it holds something else.
    """
    if "config" in record:
        return _from_format_1(record["config"])
    values = {name: value for section in SECTIONS for name, value in record[section].items()}
    return RECIPES[record["recipe"]].with_options(values)


def _from_format_1(config: dict[str, Any]) -> Recipe:
    values = {name: value for name, value in config.items() if name not in ("model", "optimizer")}
    values["bias_correction"] = _OLD_OPTIMIZERS[config["optimizer"]]
    return RECIPES[_OLD_NAMES.get(config["model"], config["model"])].with_options(values)
