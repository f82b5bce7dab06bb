"""The pretraining loop: a run is a function of its configuration and the step, whatever interrupts it."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import torch
from tqdm import tqdm

import fastlm
from fastlm.data import DataError
from fastlm.data.shards import SPLITS
from fastlm.files import disk_is_full, new_folder, write_bytes, write_json
from fastlm.train import checkpoint, report
from fastlm.train.config import PretrainConfig, run_hash
from fastlm.train.metrics import Metrics
from fastlm.train.objectives import Objective, objective_of
from fastlm.train.run import RunError, RunFolder, find_device
from fastlm.train.trainer import Plan, Trainer, Update

Notify = Callable[[str], None]

WARM_UP_UPDATES, TIMED_UPDATES, TIMED_SECONDS = 2, 3, 3.0
READ_EVERY = {"cpu": 1, "cuda": 10}  # updates between the reads of the losses, each of which waits for the device


class Interrupted(Exception):
    """The run was asked to stop (SIGINT, SIGTERM) and has saved its last step; the sentence says how to resume."""


def pretrain(config: PretrainConfig, folder: str | Path, *, notify: Notify = tqdm.write) -> dict[str, Any]:
    """Pretrains a model in a run folder, or goes on with the run that is there; returns the run's report.

    A finished run is reported again, not trained further. Raises RunError (another configuration, a full disk, a loss
    that is not finite), CheckpointError, the data's errors, and Interrupted after SIGINT or SIGTERM.
    """
    run = RunFolder(folder)
    try:
        with _full_disk_as_a_sentence(run):
            run.open(config, notify)
            return _pretrain(config, run, notify)
    finally:
        run.close()


def _pretrain(config: PretrainConfig, run: RunFolder, notify: Notify) -> dict[str, Any]:
    if run.report.is_file():
        notify(f"{run.path} is finished; this is its report")
        return report.read(run.report)
    objective = objective_of(config.model)
    tokenizer, shards = objective.prepare(config, run, notify)
    _check_data(config, objective, shards)
    recorded = run.recorded()["plan"]
    if recorded and recorded["tokenizer_hash"] != tokenizer.hash:
        raise RunError(f"run: {run.tokenizer_file} is not the tokenizer that the run began with; put that one back")
    plan = Plan(**recorded) if recorded else _make_plan(config, objective, tokenizer, shards, notify)
    if not recorded:
        run.record(config=config.to_json(), plan=asdict(plan), versions=versions())
    with _deterministic(plan.device):
        trainer = Trainer(config, plan, objective, shards)
        totals = _train(trainer, run, run_hash(config, asdict(plan)), notify)
        return _finish(trainer, run, tokenizer, totals, notify)


def _check_data(config: PretrainConfig, objective: Objective, shards: Any) -> None:
    """Raises DataError if a split is too small for one batch at any of the run's sequence lengths."""
    size = config.batch_size // config.accumulation
    for split in SPLITS:
        for length in (length for fraction, length in config.phases if fraction > 0):
            try:
                objective.dataset(shards, split, length, size, config.seed)
            except DataError as error:
                larger = f", or a larger validation_fraction than {config.validation_fraction:g}"
                raise DataError(f"{error}{larger if split == 'validation' else ''}") from None


# The plan ------------------------------------------------------------------------------------------------------


def _make_plan(config: PretrainConfig, objective: Objective, tokenizer: Any, shards: Any, notify: Notify) -> Plan:
    device = find_device(config.device).type
    plan = Plan(1, 0, device, config.precision, tokenizer.vocab_size, tokenizer.hash)
    precision, why = _precision(config, plan, objective, shards)
    notify(f"device {device}, {'bf16 autocast' if precision == 'bf16' else 'fp32'} ({why})")
    plan = replace(plan, precision=precision)
    steps, why = _steps(config, plan, objective, shards)
    plan = replace(plan, steps=steps, warmup=min(config.warmup, steps // 10))
    notify(f"{steps} updates{why}, {plan.warmup} of warm-up, then {config.decay} decay to 0")
    return plan


def _precision(config: PretrainConfig, plan: Plan, objective: Objective, shards: Any) -> tuple[str, str]:
    """The run's precision, and why.

    That a CPU multiplies bf16 says little: avx512_bf16 is slower than fp32 on some. So "auto" times it.
    """
    if config.precision != "auto":
        return config.precision, "as asked"
    if plan.device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16" if native else "fp32"), f"{torch.cuda.get_device_name()} {'has' if native else 'has no'} bf16"
    if not any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16")):
        return "fp32", "the CPU has no avx512_bf16 or amx_bf16"
    length = max(length for _, length in config.phases)
    # What else the machine does only adds to a time, so the shortest ones are compared.
    seconds = {
        precision: min(_update_seconds(config, replace(plan, precision=precision), objective, shards, length, 0.0))
        for precision in ("fp32", "bf16")
    }
    faster = min(seconds, key=seconds.get)
    return faster, f"an update takes {seconds['fp32']:.2g} s in fp32, {seconds['bf16']:.2g} s in bf16"


def _steps(config: PretrainConfig, plan: Plan, objective: Objective, shards: Any) -> tuple[int, str]:
    """The run's length in updates, and where it comes from."""
    if config.steps is not None:
        return config.steps, ""
    if config.epochs is not None:
        trainer = Trainer(config, plan, objective, shards)
        batches = sum(share * trainer.dataset("train", length).batches_per_epoch for share, length in config.phases)
        return max(1, math.ceil(config.epochs * batches / config.accumulation)), f" in {config.epochs:g} epochs"
    seconds = 0.0
    for share, length in config.phases:
        timed = _update_seconds(config, plan, objective, shards, length, TIMED_SECONDS)
        seconds += share * sum(timed) / len(timed)
    steps = max(1, round(60 * config.minutes / seconds))
    return steps, f" in about {config.minutes:g} minutes at {seconds:.3g} s each"


def _update_seconds(
    config: PretrainConfig, plan: Plan, objective: Objective, shards: Any, length: int, least: float
) -> list[float]:
    """Times the first updates at one sequence length, for so many seconds, with a model that is then thrown away."""
    trainer = Trainer(replace(config, phases=((1.0, length),)), replace(plan, steps=1 << 30), objective, shards)
    seconds: list[float] = []
    for step in itertools.count():
        start = time.perf_counter()
        trainer.update(step).values.tolist()
        if step >= WARM_UP_UPDATES:
            seconds.append(time.perf_counter() - start)
        if len(seconds) >= TIMED_UPDATES and sum(seconds) >= least:
            return seconds


# The loop ------------------------------------------------------------------------------------------------------


def _train(trainer: Trainer, run: RunFolder, run_hash: str, notify: Notify) -> dict[str, Any]:
    """Makes the updates that are left; returns the tokens that all of them read and the seconds that they took."""
    state = checkpoint.restore(run.checkpoints, trainer.model, trainer.optimizer, run_hash=run_hash, notify=notify)
    start = state["step"] if state else 0
    if state:
        notify(f"resuming at step {start} of {trainer.plan.steps}")
    config, steps = trainer.config, trainer.plan.steps
    recorder = _Recorder(trainer, run, state)
    saved = time.monotonic()
    with contextlib.closing(recorder), _StopRequest() as stop:
        for step in range(start, steps):
            recorder.add(trainer.update(step))
            done = step + 1
            late = time.monotonic() - saved > config.checkpoint_seconds
            save = stop.requested or late or done % config.checkpoint_every == 0 or done == steps
            if done % config.validate_every == 0 or done == steps:
                recorder.read()
                batches = trainer.validation_batches(config.validation_batches, step=step)
                recorder.note_validation(trainer.evaluate(batches))
            if save or recorder.full:
                recorder.write()
            if save:
                recorder.save(run_hash)
                saved = time.monotonic()
            if stop.requested and done < steps:
                raise Interrupted(f"stopped and saved at step {done} of {steps}; give the same command again to go on")
    return {"tokens": recorder.tokens, "training_seconds": round(recorder.seconds, 1)}


class _Recorder:
    """What is written while a run goes on: records, progress bar, checkpoints and the loss curve."""

    def __init__(self, trainer: Trainer, run: RunFolder, state: dict[str, Any] | None):
        self.trainer, self.run = trainer, run
        self.step, self.tokens, self.seconds = (
            (state[k] for k in ("step", "tokens", "seconds")) if state else (0, 0, 0.0)
        )
        self.metrics = Metrics(run.metrics_file, self.step)
        self._updates: list[Update] = []
        self._records: list[dict[str, Any]] = []
        self._shown: dict[str, str] = {}
        self._since = time.perf_counter()
        interval = 0.5 if sys.stderr.isatty() else 10.0
        self._bar = tqdm(
            total=trainer.plan.steps, initial=self.step, unit="step", dynamic_ncols=True, mininterval=interval
        )

    @property
    def full(self) -> bool:
        return len(self._updates) + len(self._records) >= READ_EVERY[self.trainer.device.type]

    def close(self) -> None:
        self._bar.close()
        self.metrics.close()

    def add(self, update: Update) -> None:
        self._updates.append(update)

    def read(self) -> None:
        """Turns the updates made since the last read into records; waits for the device."""
        if not self._updates:
            return
        values = torch.stack([update.values for update in self._updates]).tolist()
        now = time.perf_counter()
        each = (now - self._since) / len(values)
        for update, row in zip(self._updates, values, strict=True):
            self.step, self.tokens, self.seconds = self.step + 1, self.tokens + update.tokens, self.seconds + each
            record = {"step": self.step, **dict(zip(self.trainer.names, row, strict=True))}
            record |= {"learning_rate": update.learning_rate, "tokens": self.tokens}
            record |= {"seconds": round(self.seconds, 3), "tokens_per_second": round(update.tokens / each)}
            self._require_finite(record)
            self._records.append(record)
        self._updates.clear()
        self._since = now

    def note_validation(self, figures: dict[str, float]) -> None:
        """Adds a validation to the last record; its time does not count as training."""
        self._records[-1] |= {f"validation_{name}": value for name, value in figures.items()}
        self._shown["val"] = f"{figures['loss']:.3f}"
        self._since = time.perf_counter()

    def write(self) -> None:
        self.read()
        self.metrics.append(self._records)
        self._bar.set_postfix(
            loss=f"{_mean(self.metrics.last, 'loss'):.3f}",
            **self._shown,
            **{"tok/s": f"{_mean(self.metrics.last, 'tokens_per_second'):,.0f}"},
            refresh=False,
        )
        self._bar.update(len(self._records))
        self._records.clear()

    def save(self, run_hash: str) -> None:
        self.metrics.sync()
        state = {"tokens": self.tokens, "seconds": self.seconds}
        trainer = self.trainer
        checkpoint.save(self.run.checkpoints, self.step, trainer.model, trainer.optimizer, run_hash=run_hash, **state)
        report.plot(self.metrics.curve, self.run.curve, title=trainer.config.model)
        self._since = time.perf_counter()

    def _require_finite(self, record: dict[str, Any]) -> None:
        for name in self.trainer.names:
            if not math.isfinite(record[name]):
                raise RunError(
                    f"{name} became {record[name]} at step {record['step']}, with learning rate "
                    f"{record['learning_rate']:.2g}; start another run with a lower --learning-rate or a longer "
                    "--warmup; the checkpoints are kept"
                )


def _mean(records: Collection[dict[str, Any]], name: str) -> float:
    values = [record[name] for record in records]
    return sum(values) / len(values)


def _finish(trainer: Trainer, run: RunFolder, tokenizer: Any, totals: dict[str, Any], notify: Notify) -> dict[str, Any]:
    """Writes model/ and the report."""
    with new_folder(run.model) as folder:
        trainer.model.save(folder)
    notify("validating on all of the held-out text")
    result = {"model": trainer.config.model, "parameters": sum(p.numel() for p in trainer.model.parameters())}
    result |= {"steps": trainer.plan.steps, **totals}
    result |= trainer.objective.report(trainer, tokenizer)
    write_bytes(run.path / "report.md", report.markdown(result).encode())
    write_json(run.report, result)
    return result


# Around the loop -----------------------------------------------------------------------------------------------


class _StopRequest:
    """Within it, the first SIGINT or SIGTERM is a request to save and stop; a second SIGINT interrupts at once."""

    def __enter__(self) -> Self:
        self.requested = False
        self._previous = {}
        if threading.current_thread() is threading.main_thread():  # Python takes signals nowhere else
            self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        os.write(2, b"\nstopping after this update ...\n")  # a handler may not touch what it may have interrupted


@contextlib.contextmanager
def _deterministic(device: str) -> Iterator[None]:
    """On the CPU, every op gives the same bits again, so that a resumed run does; on CUDA that would cost speed."""
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
def _full_disk_as_a_sentence(run: RunFolder) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not disk_is_full(error):
            raise
        kept = checkpoint.find(run.checkpoints)
        step = f"the run is saved up to {kept[-1].name}" if kept else "nothing was saved yet"
        raise RunError(
            f"the disk of {run.path} is full; {step}: free some space and give the same command again"
        ) from error


def versions() -> dict[str, str]:
    return {"fastlm": fastlm.__version__, "torch": torch.__version__, "python": platform.python_version()}
