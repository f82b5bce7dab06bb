"""fastlm finetune --dry-run: walks the whole recipe on a few examples, and says what the run will take."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastlm.commands.training import memory_errors_explained
from fastlm.device import Placement
from fastlm.recipes.finetune import FinetuneRecipe

if TYPE_CHECKING:
    from fastlm.tasks.labelled import LabelledTask
    from fastlm.train.measure import Measurement
    from fastlm.train.trainer import Plan

EXAMPLES = 64  # of each file, at least; more if a batch is larger
UPDATES = 2


def dry_run(recipe: FinetuneRecipe) -> str:
    """Prepares a sample of the data, trains, validates, saves and reports in a temporary folder; returns a report.

    The numbers of the whole run are the sample's, scaled by the numbers of examples, so tokens and times are estimates.
    """
    from fastlm.train import loop
    from fastlm.train.measure import measure
    from fastlm.train.run import TrainingFolder
    from fastlm.train.trainer import Plan

    task, notes = recipe.task(), []
    task.limit = max(EXAMPLES, 2 * recipe.train.batch_size)
    short = replace(recipe.train.with_length(steps=UPDATES), validate_every=UPDATES, patience=None)
    with tempfile.TemporaryDirectory(prefix="fastlm-dry-run-") as scratch, memory_errors_explained(recipe):
        started = time.perf_counter()
        record = {"record": recipe.to_json(), "name": recipe.title}
        loop.train(task, short, recipe.placement, Path(scratch), **record, notify=notes.append)
        walked = time.perf_counter() - started
        plan = Plan(**TrainingFolder(scratch).recorded()["plan"])
        placement = replace(recipe.placement, device=plan.device, precision=plan.precision)
        measured = measure(task, recipe.train, replace(plan, steps=1 << 30), placement.backend)
        return _report(recipe, placement, task, plan, measured, notes, walked)


def _report(
    recipe: FinetuneRecipe,
    placement: Placement,
    task: LabelledTask,
    plan: Plan,
    measured: Measurement,
    notes: list[str],
    walked: float,
) -> str:
    from fastlm.train.report import aligned

    config = recipe.train
    train, dev = task.read_counts
    inputs = round(train * len(task.encoded) / (task.encoded.example[-1] + 1))
    dev_inputs = dev * len(task.encoded_validation) / len(task.examples)
    steps, validations = _updates(recipe, measured, inputs)
    of_sample = len(task.encoded_validation)
    per_validation = measured.validation_seconds * dev_inputs / of_sample
    preparing = _encoding_seconds(task) * (train + dev)
    seconds = preparing + steps * measured.update_seconds + (validations + 1) * per_validation
    padding = "" if measured.padding is None else f", and {measured.padding:.1%} of a batch is padding"
    peak = "" if measured.peak_bytes is None else f"; {_size(measured.peak_bytes)} at the peak of an update"
    rows = [["parameters", "number", "peak rate"]]
    rows += [[g.name or "all", f"{g.parameters:,}", f"{config.learning_rate * g.rate:.3g}"] for g in measured.groups]
    lines = [
        f"# {recipe.title}, {recipe.name}: a dry run",
        "",
        f"The whole recipe worked on {len(task.encoded)} training and {of_sample} dev inputs, in {walked:.1f} s.",
        f"- data: {train:,} training and {dev:,} dev examples, which make {inputs:,} and {round(dev_inputs):,} inputs",
        f"- device: {plan.device}, {plan.precision}",
        f"- updates: {steps:,} of {config.batch_size} inputs, with {validations} validations",
        f"- tokens: about {steps * measured.update_tokens:,.0f}{padding}",
        f"- memory: {_size(measured.parameter_bytes)} of parameters, {_size(measured.training_bytes)} with gradients "
        f"and Adam's moments, activations not counted{peak}",
        f"- time: about {_duration(seconds)}: {steps:,} updates of {measured.update_seconds:.3g} s, {validations + 1} "
        f"validations of {_duration(per_validation)}, {_duration(preparing)} of preparing",
        "",
        *aligned(rows),
        "",
        *(f"- {note}" for note in notes),
    ]
    return "\n".join(lines)


def _updates(recipe: FinetuneRecipe, measured: Measurement, inputs: int) -> tuple[int, int]:
    """Returns the updates and the validations of the whole run, if it does not stop early."""
    from fastlm.train.plan import updates_of_epochs

    config = recipe.train
    batches = inputs // config.micro_batch_size
    per_epoch = updates_of_epochs(config.with_length(epochs=1.0), batches)
    if config.steps is not None:
        steps = config.steps
    elif config.epochs is not None:
        steps = updates_of_epochs(config, batches)
    else:
        steps = max(1, round(60 * config.minutes / measured.update_seconds))
    at = {*range(config.validate_every, steps, config.validate_every), steps}
    if config.validate_each_epoch:
        at |= set(range(per_epoch, steps, per_epoch))
    return steps, len(at)


def _encoding_seconds(task: LabelledTask) -> float:
    """Returns the time of encoding an example, measured on the sample's."""
    from fastlm.data.labelled.encode import encode

    started = time.perf_counter()
    encode(task.examples, task.tokenizer, task.description, targets=True)
    return (time.perf_counter() - started) / len(task.examples)


def _size(count: float) -> str:
    unit, divisor = ("GB", 1e9) if count >= 1e9 else ("MB", 1e6)
    return f"{count / divisor:.3g} {unit}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} min" if seconds < 3600 else f"{seconds / 3600:.3g} h"
