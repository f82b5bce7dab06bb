"""The training loop. An interrupted and resumed run makes the same updates as one without interruption."""

from __future__ import annotations

import contextlib
import errno
import platform
import shutil
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
from fastlm.run_folder import RunError, find_checkpoints, verify_checkpoint
from fastlm.tasks.base import Task
from fastlm.train import checkpoint, pictures, report
from fastlm.train.checkpoint import checkpoint_of
from fastlm.train.config import TrainConfig
from fastlm.train.plan import check_data, make_plan
from fastlm.train.recorder import Recorder
from fastlm.train.run import Record, TrainingFolder, identity
from fastlm.train.selection import Selection
from fastlm.train.stop import StopRequest
from fastlm.train.trainer import Trainer

Notify = Callable[[str], None]


class Interrupted(Exception):
    """Reports a run that a signal stopped; the message says up to which step it is saved, and how to resume."""


def say(sentence: str) -> None:
    """Prints a sentence above the progress bar. If the terminal is gone, that does not stop a run."""
    try:
        tqdm.write(sentence)
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def train(
    task: Task,
    config: TrainConfig,
    placement: Placement,
    folder: str | Path,
    *,
    record: Record,
    name: str,
    notify: Notify = say,
) -> dict[str, Any]:
    """Trains a task in a run folder, or resumes the run that is there; returns the run's report.

    A finished run is not trained further: its report is returned again.

    Args:
        record: the configuration of the run as JSON, {section: {option: value}}; only an equal one resumes the run.
        name: the model's name in the report.

    Raises:
        RunError: the folder holds a run of another configuration, the disk is full, or a loss is not finite.
        CheckpointError, DataError, DeviceError: the checkpoints, the data or the device cannot be used.
        Interrupted: SIGINT, SIGTERM or SIGHUP stopped the run.
    """
    run = TrainingFolder(folder)
    try:
        with _full_disk_as_run_error(run):
            run.open(task, record, notify)
            if run.report.is_file():
                return _read_finished(run, notify)
            return _train(task, config, placement, run, record, name, notify)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped at once; {_saved(run)}: give the same command again to resume") from None
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
    plan = run.plan()
    # Before the data is prepared, so that a device that is not there is an error at once.
    placement = replace(placement, device=find_device(plan.device if plan else placement.device).type)
    task.prepare(run.path, notify)
    check_data(task, config, notify)
    if plan is None:
        plan = make_plan(task, config, placement, notify)
        run.record(record, plan, versions=versions())
    elif plan.task != task.identity():
        raise RunError(f"run: {run.path} holds other data than the run began with; put back the data with {plan.task}")
    with _deterministic(plan.device), Trainer(task, config, plan, placement.backend) as trainer:
        determining = identity(record, plan)
        totals, selection = _make_updates(trainer, run, determining, name, notify)
        if config.keep_best and selection.step not in (None, totals["steps"]):
            notify(f"the model is that of update {selection.step}, whose validation was the best")
            best = checkpoint_of(run.checkpoints, selection.step)
            checkpoint.load_model(best, trainer.model, identity=determining)
        return _finish(trainer, run, totals, selection, name, notify)


def _make_updates(
    trainer: Trainer, run: TrainingFolder, identity: dict[str, Any], name: str, notify: Notify
) -> tuple[dict[str, Any], Selection]:
    """Makes the remaining updates; returns the updates, tokens and training seconds of the run, and its selection."""
    state = checkpoint.restore(run.checkpoints, trainer.model, trainer.optimizer, identity=identity, notify=notify)
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
                recorder.save(identity, selection)
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
    result |= {**totals, "figures": titles, "selected_by": trainer.task.selected_by}
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


def _read_finished(run: TrainingFolder, notify: Notify) -> dict[str, Any]:
    """Returns the report of a finished run. If model/ is lost, it is written again from the last checkpoint.

    Raises RunError if that is lost, too, and CheckpointError if it is damaged.
    """
    result = report.read(run.report)
    if not run.has_model():
        last = run.checkpoints / f"step-{result['steps']:08d}"
        if not last.is_dir():
            raise RunError(
                f"run: {run.path} is finished, but model/ is lost or incomplete, and {last.name}, from which it could "
                "be written again, is lost, too; give another --run to train it again"
            )
        verify_checkpoint(last)
        with new_folder(run.model) as folder:
            shutil.copytree(last / "model", folder, dirs_exist_ok=True)
        notify(f"{run.model} was lost or incomplete; it is written again from {last.name}")
    notify(f"{run.path} is finished; this is its report")
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
        raise RunError(
            f"the disk of {run.path} is full; {_saved(run)}: free some space and give the same command again"
        ) from error


def _saved(run: TrainingFolder) -> str:
    kept = find_checkpoints(run.checkpoints)
    return f"the run is saved up to {kept[-1].name}" if kept else "nothing was saved yet"


def versions() -> dict[str, str]:
    """Returns the versions that a run's record keeps."""
    return {"fastlm": fastlm.__version__, "torch": torch.__version__, "python": platform.python_version()}
