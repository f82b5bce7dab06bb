"""fastlm finetune: fine-tunes a pretrained model on labelled data, or resumes such a run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastlm.commands import INTERRUPTED, fail, import_torch
from fastlm.commands.arguments import add_option
from fastlm.commands.predict import submission_of
from fastlm.commands.training import train_recipe
from fastlm.data.labelled.examples import Example
from fastlm.files import write_bytes
from fastlm.recipes import finetune as recipes
from fastlm.recipes.finetune import FinetuneRecipe
from fastlm.run_folder import RunError, RunFolder

DESCRIPTION = (
    "Fine-tunes a pretrained model on labelled data, or resumes the interrupted run of a run folder. An option that is "
    "not given has the value of the paper's recipe for the model and the task (or of the resumed run)."
)


def add_parser(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = commands.add_parser(
        "finetune",
        help="fine-tune a pretrained model on labelled data, or resume a run",
        description=DESCRIPTION,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("start", nargs="?", help="run folder, model's folder, or folder of transformers to start from")
    parser.add_argument("--run", default=None, help="run folder of the fine-tuned model (default: runs/TASK)")
    parser.add_argument("--recipe", metavar="NAME", help=f"{', '.join(recipes.RECIPES)} (default: that of the model)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run", action="store_true", help="walk the recipe on a few examples, and say what the run will take"
    )
    instead.add_argument(
        "--search",
        metavar="GRID",
        help='train with every combination, such as "learning_rate=2e-5,3e-5 seed=0,1,2", in RUN/trials, and compare',
    )
    for option in recipes.OPTIONS:
        add_option(parser, option)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    given = {f.name: getattr(options, f.name) for f in recipes.OPTIONS if hasattr(options, f.name)}
    recipe, folder = _chosen_run(options, given)
    recipe.format()  # before torch is imported, which takes seconds
    import_torch()
    if hasattr(options, "search"):
        from fastlm.commands.search import search

        return search(recipe, options.search, folder.path)
    if hasattr(options, "dry_run"):
        from fastlm.commands.dry_run import dry_run

        print(dry_run(recipe))
        return 0
    return _train(recipe, folder)


def _train(recipe: FinetuneRecipe, folder: RunFolder) -> int:
    test_file = recipe.labelled.test_file
    if test_file is not None:  # it is read now, so that a bad file is an error before the training
        examples = recipe.format().read(Path(test_file), labelled=False)

    from fastlm.train.loop import Interrupted
    from fastlm.train.report import markdown

    try:
        result = train_recipe(recipe, folder.path)
    except Interrupted as interruption:
        return fail(str(interruption), INTERRUPTED)
    print(f"\n{markdown(result)}\nIn {folder.path}: model/, metrics.jsonl, loss.png, scores.png, report.md.")
    if test_file is not None:
        print(f"Predictions for {test_file}: {_predict(recipe, folder, examples)}")
    print(f"Try: {recipe.task().try_command(folder.path)}")
    return 0


def _predict(recipe: FinetuneRecipe, folder: RunFolder, examples: Sequence[Example]) -> str:
    """Writes predictions.jsonl and, for a benchmark, submission/; returns the paths."""
    from fastlm.inference.predict import Predictor

    predictor = Predictor.load(folder.path, device=recipe.placement.device)
    predictions = list(predictor.predict(examples))
    lines = "".join(json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions)
    write_bytes(folder.path / "predictions.jsonl", lines.encode())
    made, format = [folder.path / "predictions.jsonl"], recipe.format()
    if format.submission is not None:
        made += submission_of(format)(folder.path / "submission", predictor.task, predictions)
    return ", ".join(map(str, made))


def _chosen_run(options: argparse.Namespace, given: dict[str, Any]) -> tuple[FinetuneRecipe, RunFolder]:
    """Returns the recipe with the given options, and the run folder.

    If the folder holds a run with an update, options that are not given keep the values of that run.
    """
    folder = RunFolder(options.run or f"runs/{given.get('format', 'finetune')}")
    if folder.begun():
        return _recorded(folder, options).with_options(given), folder
    missing = [flag for name, flag in _NEEDED.items() if not (getattr(options, name, None) or given.get(name))]
    if missing:
        raise ValueError(f"finetune: {', '.join(missing)} needed for a new run ({folder.path} holds none to resume)")
    name = getattr(options, "recipe", None)
    return recipes.for_model(options.start, given["format"], name).with_options(given), folder


_NEEDED = {"start": "START", "format": "--task", "train_file": "--train-file", "dev_file": "--dev-file"}


def _recorded(folder: RunFolder, options: argparse.Namespace) -> FinetuneRecipe:
    """Returns the recipe of the run in a folder. Raises RunError if START or --recipe name another one."""
    record = folder.recorded()
    if "labelled" not in record:
        raise RunError(f"run: {folder.path} holds a pretraining run; name another --run for the fine-tuned model")
    try:
        recipe = recipes.from_record(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"run: {folder.config_file} was written by another version of fastlm ({error!r})") from error
    for name, there in (("start", recipe.start), ("recipe", recipe.name)):
        asked = getattr(options, name, there)
        if asked != there:
            raise RunError(
                f"run: {folder.path} holds a run with another configuration: {name} (now {asked!r}, there {there!r}); "
                "give the same options to resume it, or another --run"
            )
    return recipe
