"""The trainer: model, optimizer and data of a run; it makes updates and validations."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from fastlm.tasks.base import Batch, Dataset, Task
from fastlm.train.config import TrainConfig
from fastlm.train.groups import by_rate, rated_groups
from fastlm.train.optim import build_optimizer, clip_and_step, set_rate
from fastlm.train.schedule import learning_rate, rate_correction, sequence_length


@dataclass(frozen=True)
class Plan:
    """Holds the recorded decisions from the start of a run, so that later nothing depends on clock or machine."""

    steps: int
    warmup: float  # updates; only "warmup-times-decay" takes a fraction of one
    device: str
    precision: str
    task: dict[str, Any]  # the task's identity


class Update(NamedTuple):
    """Holds the results of an update. `values` belong to the trainer's `names`; they are still on the device."""

    values: Tensor
    learning_rate: float
    tokens: int


class Trainer:
    """Makes updates 0, 1, ... of a run. All random numbers come from (seed, step) or torch's generators.

    As a context manager it ends, on leaving, the thread that prepares batches.
    """

    def __init__(self, task: Task, config: TrainConfig, plan: Plan, backend: str = "auto"):
        self.task, self.config, self.plan = task, config, plan
        self.device = torch.device(plan.device)
        self.names = (*task.loss_names, "gradient_norm")
        self._datasets: dict[tuple[str, int], Dataset] = {}
        self._loader = _Loader(self._load)
        torch.manual_seed(config.seed)
        self.model = task.build(backend).to(self.device)
        self.groups = rated_groups(task.groups(self.model), config)
        self.optimizer = build_optimizer(
            by_rate(self.groups),
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
        """Makes update `step`: forward and backward per micro-batch, clipping, one step of the optimizer."""
        count = self.config.accumulation
        losses, tokens, sequences = torch.zeros(len(self.task.loss_names), device=self.device), 0, 0
        if not self.model.training:  # train() goes through all modules
            self.model.train()
        seeds = self.model.draw_seeds() if hasattr(self.model, "draw_seeds") else None
        for index, divisor in enumerate(self._divisors(step)):
            batch = self._loader.get(step * count + index, last=self.plan.steps * count - 1)
            tokens += self.task.tokens(batch)
            with self.autocast():
                micro_losses = self.task.losses(self.model, self._to_device(batch) | self._dropout(seeds, sequences))
            sequences += self.task.sequences(batch)
            (micro_losses[0] / divisor).backward()
            losses += torch.stack([loss.detach() for loss in micro_losses]) / divisor
        rate = self.learning_rate(step)
        set_rate(self.optimizer, rate * self._rate_factor(step))
        norm = clip_and_step(self.optimizer, self.config.clip)
        self.optimizer.zero_grad(set_to_none=True)
        return Update(torch.cat([losses, norm.view(1)]), rate, tokens)

    def _divisors(self, step: int) -> list[float]:
        """Returns what the loss of each micro-batch is divided by, so that their sum is the loss of the whole batch."""
        count = self.config.accumulation
        if count == 1:
            return [1.0]
        placed = [self._placed(step * count + index) for index in range(count)]
        weights = [getattr(dataset, "weight", lambda _: 1.0)(index) for dataset, index in placed]
        total = sum(weights)
        return [total / weight if weight else math.inf for weight in weights] if total else [float(count)] * count

    def _dropout(self, seeds: Tensor | None, sequences: int) -> Batch:
        """Returns the entries with which a micro-batch, after so many sequences, draws the masks of the whole batch."""
        if seeds is None:
            return {}
        first = torch.full((1,), sequences, device=self.device)  # no copy from the host
        return {"seeds": seeds, "first_sequence": first}

    def learning_rate(self, step: int) -> float:
        """Returns the schedule's rate of an update; each parameter group multiplies it by its own rate."""
        config, plan = self.config, self.plan
        shape = {"steps": plan.steps, "warmup": plan.warmup, "decay": config.decay, "schedule": config.schedule}
        return learning_rate(step, peak=config.learning_rate, **shape)

    def _rate_factor(self, step: int) -> float:
        config = self.config
        return rate_correction(step, (config.beta1, config.beta2)) if config.rate_correction else 1.0

    def ends_epoch(self, step: int) -> bool:
        """Returns whether an epoch of the training data ends in update `step`."""
        count = self.config.accumulation
        batches = self.dataset("train", self.sequence_length(step)).batches_per_epoch
        if self.config.whole_epochs:
            batches -= batches % count
        return (step + 1) * count // batches > step * count // batches

    def validation_batches(self, limit: int | None = None, *, step: int | None = None) -> Iterator[Batch]:
        """Returns the first `limit` validation batches (None or 0: all), of the length at `step` (None: at the end)."""
        dataset = self.dataset("validation", self.sequence_length(self.plan.steps - 1 if step is None else step))
        count = min(dataset.batches_per_epoch, limit or dataset.batches_per_epoch)
        return (dataset.batch(i) for i in range(count))

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Returns the task's metrics on these batches, without dropout."""
        self.model.eval()
        with self.autocast():
            return self.task.evaluate(self.model, map(self._to_device, batches))

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.precision == "bf16")

    def sequence_length(self, step: int) -> int:
        return sequence_length(step, steps=self.plan.steps, phases=self.config.phases)

    def dataset(self, split: str, length: int) -> Dataset:
        """Returns the dataset of a split at a sequence length. Its batches are micro-batches."""
        if (split, length) not in self._datasets:
            self._datasets[split, length] = self.task.dataset(
                split, length, self.config.micro_batch_size, self.config.seed
            )
        return self._datasets[split, length]

    def _placed(self, index: int) -> tuple[Dataset, int]:
        """Returns the dataset of a run's micro-batch, and the micro-batch's number in it."""
        count = self.config.accumulation
        dataset = self.dataset("train", self.sequence_length(index // count))
        if self.config.whole_epochs:
            epoch, within = divmod(index, dataset.batches_per_epoch // count * count)
            index = epoch * dataset.batches_per_epoch + within
        return dataset, index

    def _load(self, index: int) -> Batch:
        """Makes a micro-batch, in pinned memory for a GPU, where an expanded tensor cannot be copied to."""
        dataset, index = self._placed(index)
        batch = dataset.batch(index)
        return {name: t.contiguous().pin_memory() for name, t in batch.items()} if self.device.type == "cuda" else batch

    def _to_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}


class _Loader:
    """Prepares the next batch in a thread while the model trains on this one."""

    def __init__(self, load: Any):
        self._load = load
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fastlm-data")
        self._next: tuple[int, Future] | None = None

    def get(self, index: int, *, last: int) -> Batch:
        is_ready = self._next is not None and self._next[0] == index
        batch = self._next[1].result() if is_ready else self._load(index)
        self._next = (index + 1, self._thread.submit(self._load, index + 1)) if index < last else None
        return batch

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._next = None
