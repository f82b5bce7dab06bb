"""The plan of a run, made once: device, precision, and the length in updates."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from fastlm.data import DataError
from fastlm.device import Placement
from fastlm.tasks.base import Task
from fastlm.train.config import TrainConfig
from fastlm.train.trainer import Plan, Trainer

WARM_UP_UPDATES, TIMED_UPDATES, TIMED_SECONDS = 2, 3, 3.0
RATE_SECONDS = 0.5

Notify = Callable[[str], None]


def check_data(task: Task, config: TrainConfig, notify: Notify) -> None:
    """Gives `notify` the warnings of a prepared task's training data.

    Raises DataError if a split is too small for one batch at any of the run's lengths, or, with `whole_epochs`, the
    training data for one update.
    """
    for split in ("train", "validation"):
        for length in (length for fraction, length in config.phases if fraction > 0):
            try:
                dataset = task.dataset(split, length, config.micro_batch_size, config.seed)
                for warning in getattr(dataset, "warnings", ()) if split == "train" else ():
                    notify(warning)
            except DataError as error:
                hint = task.validation_hint if split == "validation" else ""
                raise DataError(f"{error}{hint}") from None
            if split == "train" and config.whole_epochs and dataset.batches_per_epoch < config.accumulation:
                raise DataError(f"train: an epoch has less than one batch of {config.batch_size}; lower batch_size")


def make_plan(task: Task, config: TrainConfig, placement: Placement, notify: Notify) -> Plan:
    """Returns the plan of a prepared task's run. `notify` gets a sentence on each choice.

    placement.device is "cpu" or "cuda", not "auto".
    """
    plan = Plan(1, 0, placement.device, placement.precision, task.identity())
    precision, why = choose_precision(task, config, placement, plan)
    notify(f"device {plan.device}, {'bf16 autocast' if precision == 'bf16' else 'fp32'} ({why})")
    plan = replace(plan, precision=precision)
    steps, why = count_steps(task, config, placement, plan)
    plan = replace(plan, steps=steps, warmup=count_warmup(config, steps))
    joined = {"warmup-then-decay": ", then", "warmup-times-decay": " times", "warmup-replaces-decay": " in place of"}
    notify(f"{steps} updates{why}, {plan.warmup:g} of warm-up{joined[config.schedule]} {config.decay} decay to 0")
    return plan


def count_warmup(config: TrainConfig, steps: int) -> float:
    """Returns the updates of warm-up. A fraction of the run is rounded down, but not in "warmup-times-decay"."""
    if config.warmup_fraction is None:
        return min(config.warmup, steps // 10)
    updates = config.warmup_fraction * steps
    return updates if config.schedule == "warmup-times-decay" else int(updates)


def choose_precision(task: Task, config: TrainConfig, placement: Placement, plan: Plan) -> tuple[str, str]:
    """Returns the run's precision and the reason for it.

    A CPU with bf16 instructions may still be slower in bf16: avx512_bf16 is slower than fp32 on some. "auto" times
    both.
    """
    if placement.precision != "auto":
        return placement.precision, "as asked"
    if plan.device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16" if native else "fp32"), f"{torch.cuda.get_device_name()} {'has' if native else 'has no'} bf16"
    if not any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16")):
        return "fp32", "the CPU has no avx512_bf16 or amx_bf16"
    # Other processes only make an update slower, so the shortest times are compared.
    seconds = {
        precision: min(
            update_seconds(task, config, placement, replace(plan, precision=precision), config.max_length, 0.0)
        )
        for precision in ("fp32", "bf16")
    }
    faster = min(seconds, key=seconds.get)
    return faster, f"an update takes {seconds['fp32']:.2g} s in fp32, {seconds['bf16']:.2g} s in bf16"


def product_rate() -> float:
    """Measures the floating-point operations per second of matrix products of a small model's shapes on this CPU.

    Other processes slow the measurement down as they will slow down the run.
    """
    a, b = torch.randn(1024, 256), torch.randn(256, 1024)
    for _ in range(2):  # the first ones start threads and allocate
        a @ b
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < RATE_SECONDS:
        a @ b
        count += 1
    return count * 2 * 1024 * 256 * 1024 / (time.perf_counter() - started)


def count_steps(task: Task, config: TrainConfig, placement: Placement, plan: Plan) -> tuple[int, str]:
    """Returns the run's length in updates, and a phrase that explains it."""
    if config.steps is not None:
        return config.steps, ""
    if config.epochs is not None:
        batches = sum(
            share * task.dataset("train", length, config.micro_batch_size, config.seed).batches_per_epoch
            for share, length in config.phases
        )
        return updates_of_epochs(config, batches), f" in {config.epochs:g} epochs"
    seconds = 0.0
    for share, length in config.phases:
        timed = update_seconds(task, config, placement, plan, length, TIMED_SECONDS)
        seconds += share * sum(timed) / len(timed)
    steps = max(1, round(60 * config.minutes / seconds))
    return steps, f" in about {config.minutes:g} minutes at {seconds:.3g} s each"


def updates_of_epochs(config: TrainConfig, batches: float) -> int:
    """Returns the updates of a run whose epochs have so many micro-batches each."""
    if config.whole_epochs:
        batches -= batches % config.accumulation
    return max(1, math.ceil(config.epochs * batches / config.accumulation))


def update_seconds(
    task: Task, config: TrainConfig, placement: Placement, plan: Plan, length: int, least: float
) -> list[float]:
    """Times single updates at one sequence length, for at least `least` seconds in total, on a model of its own."""
    config, plan = replace(config, phases=((1.0, length),)), replace(plan, steps=1 << 30)
    seconds: list[float] = []
    with Trainer(task, config, plan, placement.backend) as trainer:
        for step in itertools.count():
            start = time.perf_counter()
            trainer.update(step).values.tolist()
            if step >= WARM_UP_UPDATES:
                seconds.append(time.perf_counter() - start)
            if len(seconds) >= TIMED_UPDATES and sum(seconds) >= least:
                return seconds
