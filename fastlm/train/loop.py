"""The training loop. An interrupted and resumed run makes the same updates as one without interruption."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import fastlm
from fastlm.device import Placement, find_device
from fastlm.files import disk_is_full, new_folder, write_bytes, write_json
from fastlm.run_folder import RunError, find_checkpoints
from fastlm.tasks.base import Task
from fastlm.train import checkpoint, pictures, report
from fastlm.train.checkpoint import checkpoint_of
from fastlm.train.config import TrainConfig
from fastlm.train.plan import check_data, make_plan
from fastlm.train.recorder import Recorder
from fastlm.train.run import Record, TrainingFolder, run_hash
from fastlm.train.selection import Selection
from fastlm.train.stop import StopRequest
from fastlm.train.trainer import Plan, Trainer

Notify = Callable[[str], None]


class Interrupted(Exception):
    """Reports a run that SIGINT or SIGTERM stopped, and that saved its last step; the message says how to resume."""


def train(
    task: Task,
    config: TrainConfig,
    placement: Placement,
    folder: str | Path,
    *,
    record: Record,
    name: str,
    notify: Notify = tqdm.write,
) -> dict[str, Any]:
    """Trains a task in a run folder, or resumes the run that is there; returns the run's report.

    A finished run is not trained further: its report is returned again.

    Args:
        record: the configuration of the run as JSON, {section: {option: value}}; only an equal one resumes the run.
        name: the model's name in the report.

    Raises:
        RunError: the folder holds a run of another configuration, the disk is full, or a loss is not finite.
        CheckpointError, DataError, DeviceError: the checkpoints, the data or the device cannot be used.
        Interrupted: SIGINT or SIGTERM stopped the run.
    """
    run = TrainingFolder(folder)
    try:
        with _full_disk_as_run_error(run):
            run.open(task, record, notify)
            if run.report.is_file():
                notify(f"{run.path} is finished; this is its report")
                return report.read(run.report)
            return _train(task, config, placement, run, record, name, notify)
    finally:
        run.close()


def _train(
    task: Task,
    config: TrainConfig,
    placement: Placement,
    run: TrainingFolder,
    record: Record,
    name: str,
    notify: Notify,
) -> dict[str, Any]:
    recorded = run.recorded()["plan"]
    # Before the data is prepared, so that a device that is not there is an error at once.
    device = find_device(recorded["device"] if recorded else placement.device)
    placement = replace(placement, device=device.type)
    task.prepare(run.path, notify)
    check_data(task, config, notify)
    plan = _plan(task, config, placement, run, record, notify)
    with _deterministic(plan.device), Trainer(task, config, plan, placement.backend) as trainer:
        digest = run_hash(record, plan)
        totals, selection = _make_updates(trainer, run, digest, name, notify)
        if config.keep_best and selection.step not in (None, totals["steps"]):
            notify(f"the model is that of update {selection.step}, whose validation was the best")
            checkpoint.load_model(checkpoint_of(run.checkpoints, selection.step), trainer.model, run_hash=digest)
        return _finish(trainer, run, totals, selection, name, notify)


def _plan(
    task: Task, config: TrainConfig, placement: Placement, run: TrainingFolder, record: Record, notify: Notify
) -> Plan:
    """Returns the recorded plan of the run, or makes one and records it."""
    recorded = run.recorded()["plan"]
    if not recorded:
        plan = make_plan(task, config, placement, notify)
        run.record(record, plan, versions=versions())
        return plan
    plan = Plan(**recorded)
    if plan.task != task.identity():
        raise RunError(f"run: {run.path} holds other data than the run began with; put back the data with {plan.task}")
    return plan


def _make_updates(
    trainer: Trainer, run: TrainingFolder, run_hash: str, name: str, notify: Notify
) -> tuple[dict[str, Any], Selection]:
    """Makes the remaining updates; returns the updates, tokens and training seconds of the run, and its selection."""
    state = checkpoint.restore(run.checkpoints, trainer.model, trainer.optimizer, run_hash=run_hash, notify=notify)
    start = state["step"] if state else 0
    if state:
        notify(f"resuming at step {start} of {trainer.plan.steps}")
    elif run.begun():
        notify(f"{run.path} has no checkpoint: the run starts again at step 0")
    config, steps = trainer.config, trainer.plan.steps
    recorder = Recorder(trainer, run, state, name)
    selection = Selection(trainer.task.selected_by, config.patience, state and state.get("best"))
    if lost := recorder.metrics.lost:
        notify(
            f"{run.metrics_file}: {lost} of the records of the first {start} updates are lost or damaged; the run "
            "continues, and its loss curve is drawn without them"
        )
    saved = time.monotonic()
    with contextlib.closing(recorder), StopRequest() as stop:
        for step in range(start, steps):
            if selection.is_over:
                notify(f"stopped early, at step {step} of {steps}: {selection.waited} validations without a better one")
                break
            recorder.add(trainer.update(step))
            done = step + 1
            overdue = time.monotonic() - saved > config.checkpoint_seconds
            save = stop.requested or overdue or done % config.checkpoint_every == 0 or done == steps
            if _is_validated(trainer, step):
                recorder.read()
                metrics = trainer.evaluate(trainer.validation_batches(config.validation_batches, step=step))
                recorder.add_validation(metrics)
                save |= selection.add(done, metrics) and config.keep_best  # the best model is in a checkpoint
                save |= selection.is_over
            if save or recorder.is_full:
                recorder.write()
            if save:
                recorder.save(run_hash, selection)
                saved = time.monotonic()
            if stop.requested and done < steps:
                raise Interrupted(f"stopped and saved at step {done} of {steps}; give the same command again to resume")
    totals = {"steps": recorder.step, "tokens": recorder.tokens, "training_seconds": round(recorder.seconds, 1)}
    return totals, selection


def _is_validated(trainer: Trainer, step: int) -> bool:
    """Returns whether a validation follows update `step`."""
    config, done = trainer.config, step + 1
    if done % config.validate_every == 0 or done == trainer.plan.steps:
        return True
    return config.validate_each_epoch and trainer.ends_epoch(step)


def _finish(
    trainer: Trainer, run: TrainingFolder, totals: dict[str, Any], selection: Selection, name: str, notify: Notify
) -> dict[str, Any]:
    """Writes the report and model/; returns the report."""
    notify("validating on all of the held-out data")
    result = {"model": name, "parameters": sum(p.numel() for p in trainer.model.parameters())}
    titles = {metric: list(title) for metric, title in trainer.task.metric_names.items()}
    result |= {**totals, "figures": titles}
    if trainer.config.keep_best and selection.step is not None:
        result["best"] = selection.to_json()
    result |= trainer.task.report(trainer, name)
    if "confusion" in result:
        pictures.plot_confusion(result["confusion"], run.confusion, title=name)
    with new_folder(run.model) as folder:  # after the report, which may tune a threshold that the model's files hold
        trainer.model.save(folder)
    write_bytes(run.report_text, report.markdown(result).encode())
    write_json(run.report, result)
    return result


@contextlib.contextmanager
def _deterministic(device: str) -> Iterator[None]:
    """Makes the CPU's ops deterministic, so that a resumed run has the same bits. On CUDA that would cost speed."""
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(before or device == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill


@contextlib.contextmanager
def _full_disk_as_run_error(run: TrainingFolder) -> Iterator[None]:
    """Turns the OSError of a full disk into a RunError that says what is saved."""
    try:
        yield
    except OSError as error:
        if not disk_is_full(error):
            raise
        kept = find_checkpoints(run.checkpoints)
        step = f"the run is saved up to {kept[-1].name}" if kept else "nothing was saved yet"
        raise RunError(
            f"the disk of {run.path} is full; {step}: free some space and give the same command again"
        ) from error


def versions() -> dict[str, str]:
    """Returns the versions that a run's record keeps."""
    return {"fastlm": fastlm.__version__, "torch": torch.__version__, "python": platform.python_version()}
