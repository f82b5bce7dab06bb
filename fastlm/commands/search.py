"""fastlm finetune --search: a run per combination of options, and the mean and deviation of their scores over seeds."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastlm._options import require
from fastlm.commands import INTERRUPTED, fail
from fastlm.commands.arguments import value_of
from fastlm.commands.training import train_recipe
from fastlm.files import write_bytes, write_json
from fastlm.recipes.finetune import OPTIONS, FinetuneRecipe

SEARCHABLE = {option.name: option for option in OPTIONS if option.name not in ("format", "train_file", "dev_file")}


def parse_grid(text: str) -> dict[str, list[Any]]:
    """Parses "learning_rate=2e-5,3e-5 seed=0,1,2" into {option: values}. Raises ValueError, naming the option."""
    grid: dict[str, list[Any]] = {}
    for entry in text.split():
        name, _, values = entry.partition("=")
        name = name.lstrip("-").replace("-", "_")
        require(name in SEARCHABLE, "search", "OPTION=VALUE,VALUE,... of an option of finetune", entry)
        require(name not in grid, "search", f"{name} once", text)
        try:
            grid[name] = [value_of(SEARCHABLE[name], value) for value in values.split(",")]
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"search: {name}: {error}") from None
        require(len(set(grid[name])) == len(grid[name]), "search", f"different values of {name}", values)
    require(bool(grid), "search", "OPTION=VALUE,VALUE,... (such as learning_rate=2e-5,3e-5)", text)
    return grid


def search(recipe: FinetuneRecipe, text: str, folder: Path) -> int:
    """Trains the trials in folder/trials, and writes search.json, search.md and search.png. Returns the exit code.

    Finished trials are not trained again, and an unfinished one is resumed. All recipes are made before the first run,
    so that a value that an option cannot have is an error at once.
    """
    from fastlm.train.trials import trials_of

    trials = trials_of(parse_grid(text))
    recipes = [recipe.with_options(trial.options) for trial in trials]

    from fastlm.train.loop import Interrupted

    results = []
    for number, (trial, own) in enumerate(zip(trials, recipes, strict=True), 1):
        print(f"\ntrial {number} of {len(trials)}: {trial.name}")
        try:
            result = train_recipe(own, folder / "trials" / trial.name)
        except Interrupted as interruption:
            return fail(f"trial {number} of {len(trials)}: {interruption}", INTERRUPTED)
        results.append({"trial": trial.name, "options": trial.options, "scores": result["scores"][own.title]})
        _write(recipe, results, result["selected_by"], result["figures"], folder)
    print("\n" + (folder / "search.md").read_text() + f"\nIn {folder}: search.md, search.json, search.png, trials/.")
    return 0


def _write(
    recipe: FinetuneRecipe,
    results: Sequence[dict[str, Any]],
    metric: str,
    titles: Mapping[str, tuple[str, str]],
    folder: Path,
) -> None:
    """Writes the results of the trials so far. metric: what is compared. titles: as in a report's "figures"."""
    from fastlm.train.pictures import plot_trials
    from fastlm.train.trials import summarise, table

    title = titles[metric]
    summaries = summarise([(result["options"], result["scores"][metric]) for result in results])
    lines = [f"# {recipe.title}, {recipe.name}", "", *table(summaries, metric, title)]
    if any(len(summary.scores) < 2 for summary in summaries):
        lines += ["", "A row of one seed has no deviation: add seeds, such as seed=0,1,2, before comparing rows."]
    write_json(
        folder / "search.json", {"metric": metric, "trials": results, "summaries": [s._asdict() for s in summaries]}
    )
    write_bytes(folder / "search.md", ("\n".join(lines) + "\n").encode())
    plot_trials(summaries, folder / "search.png", metric=title[0], title=recipe.title)
