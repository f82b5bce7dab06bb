"""Measures the needs of a run: its groups of parameters, its memory, and the time of its updates and validations."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from fastlm.tasks.base import Task
from fastlm.train.config import TrainConfig
from fastlm.train.trainer import Plan, Trainer

WARM_UP_UPDATES, TIMED_UPDATES = 1, 3


class GroupRecord(NamedTuple):
    """Describes a group of parameters; rate: its multiple of the schedule's learning rate."""

    name: str
    parameters: int
    rate: float


class Measurement(NamedTuple):
    """Holds what was measured on a task's prepared data."""

    groups: list[GroupRecord]
    parameter_bytes: int
    training_bytes: int  # parameters, gradients and Adam's moments
    peak_bytes: int | None  # of all tensors on a CUDA device, after the updates; None on a CPU
    update_seconds: float
    update_tokens: float  # without padding
    padding: float | None  # the fraction of the training batches' tokens, if the dataset says it
    validation_seconds: float
    validation_batches: int


def measure(task: Task, config: TrainConfig, plan: Plan, backend: str) -> Measurement:
    """Times the first updates and one validation of a prepared task, with a model that is then thrown away."""
    with Trainer(task, config, plan, backend) as trainer:
        seconds, tokens = [], []
        for step in range(WARM_UP_UPDATES + TIMED_UPDATES):
            start = time.perf_counter()
            update = trainer.update(step)
            update.values.tolist()  # waits for the device
            seconds.append(time.perf_counter() - start)
            tokens.append(update.tokens)
        start = time.perf_counter()
        batches = list(trainer.validation_batches(config.validation_batches))
        trainer.evaluate(batches)
        validation_seconds = time.perf_counter() - start
        size = _bytes(trainer.model.parameters())
        moments = sum(_bytes(state.values()) for state in trainer.optimizer.state.values())
        peak = torch.cuda.max_memory_allocated() if trainer.device.type == "cuda" else None
        dataset = trainer.dataset("train", config.max_length)
        return Measurement(
            [GroupRecord(g.name, sum(p.numel() for p in g.parameters), g.rate) for g in trainer.groups],
            size,
            size + _bytes(p for p in trainer.model.parameters() if p.requires_grad) + moments,
            peak,
            sum(seconds[WARM_UP_UPDATES:]) / TIMED_UPDATES,
            sum(tokens) / len(tokens),
            getattr(dataset, "padding", None),
            validation_seconds,
            len(batches),
        )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
