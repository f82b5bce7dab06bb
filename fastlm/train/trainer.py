"""Model, optimizer and data of a run, and what one update and one validation are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from fastlm.device import find_device
from fastlm.tasks.base import Batch, Dataset, Task
from fastlm.train.config import TrainConfig
from fastlm.train.optim import build_optimizer, clip_and_step, set_rate
from fastlm.train.schedule import learning_rate, sequence_length


@dataclass(frozen=True)
class Plan:
    """What is fixed once, when a run starts, and recorded: from then on nothing depends on the clock or the machine."""

    steps: int
    warmup: int
    device: str
    precision: str
    task: dict[str, Any]  # the task's identity


class Update(NamedTuple):
    """One update: `values` has the trainer's `names`, on the device and not waited for."""

    values: Tensor
    learning_rate: float
    tokens: int


class Trainer:
    """Makes updates 0, 1, ... of a run. Everything drawn at random comes from (seed, step) or torch's generators.

    It is a context manager: leaving it ends the thread that prepares batches.
    """

    def __init__(self, task: Task, config: TrainConfig, plan: Plan, backend: str = "auto"):
        self.task, self.config, self.plan = task, config, plan
        self.device = find_device(plan.device)
        self.names = (*task.loss_names, "gradient_norm")
        self._datasets: dict[tuple[str, int], Dataset] = {}
        self._loader = _Loader(self._load)
        torch.manual_seed(config.seed)
        self.model = task.build(backend).to(self.device)
        self.optimizer = build_optimizer(
            task.groups(self.model),
            bias_correction=config.bias_correction,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            backend=backend,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._loader.close()

    def update(self, step: int) -> Update:
        """Update `step`: forward and backward of each part of the batch, clipping, one step of the optimizer."""
        parts = self.config.accumulation
        losses, tokens = torch.zeros(len(self.task.loss_names), device=self.device), 0
        if not self.model.training:  # it goes through all modules
            self.model.train()
        for part in range(step * parts, (step + 1) * parts):
            batch = self._loader.get(part, last=self.plan.steps * parts - 1)
            tokens += self.task.tokens(batch)
            with self.autocast():
                part_losses = self.task.losses(self.model, self._to_device(batch))
            (part_losses[0] / parts).backward()
            losses += torch.stack([loss.detach() for loss in part_losses]) / parts
        rate = self.learning_rate(step)
        set_rate(self.optimizer, rate)
        norm = clip_and_step(self.optimizer, self.config.clip)
        self.optimizer.zero_grad(set_to_none=True)
        return Update(torch.cat([losses, norm.view(1)]), rate, tokens)

    def learning_rate(self, step: int) -> float:
        """The schedule's rate of an update; a group of parameters learns at its multiple of it."""
        config, plan = self.config, self.plan
        return learning_rate(step, peak=config.learning_rate, warmup=plan.warmup, steps=plan.steps, decay=config.decay)

    def validation_batches(self, most: int | None = None, *, step: int | None = None) -> Iterator[Batch]:
        """The first batches (None: all) of the validation split at a step's sequence length (None: the last step's)."""
        dataset = self.dataset("validation", self.sequence_length(self.plan.steps - 1 if step is None else step))
        count = min(dataset.batches_per_epoch, most or dataset.batches_per_epoch)
        return (dataset.batch(i) for i in range(count))

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The task's figures on these batches, without dropout."""
        self.model.eval()
        with self.autocast():
            return self.task.evaluate(self.model, map(self._to_device, batches))

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.precision == "bf16")

    def sequence_length(self, step: int) -> int:
        return sequence_length(step, steps=self.plan.steps, phases=self.config.phases)

    def dataset(self, split: str, length: int) -> Dataset:
        """The dataset of a split at a sequence length; its batches are those of one part of an update."""
        if (split, length) not in self._datasets:
            self._datasets[split, length] = self.task.dataset(split, length, self.config.part_size, self.config.seed)
        return self._datasets[split, length]

    def _load(self, part: int) -> Batch:
        step = part // self.config.accumulation
        batch = self.dataset("train", self.sequence_length(step)).batch(part)
        return {name: t.pin_memory() for name, t in batch.items()} if self.device.type == "cuda" else batch

    def _to_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}


class _Loader:
    """Prepares the next batch in a thread while the model works on this one."""

    def __init__(self, load: Any):
        self._load = load
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fastlm-data")
        self._next: tuple[int, Future] | None = None

    def get(self, index: int, *, last: int) -> Batch:
        ready = self._next is not None and self._next[0] == index
        batch = self._next[1].result() if ready else self._load(index)
        self._next = (index + 1, self._thread.submit(self._load, index + 1)) if index < last else None
        return batch

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._next = None
