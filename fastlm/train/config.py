"""The configuration of training: length, batches, optimizer, schedule, validation, checkpoints. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from fastlm._options import INTEGERS_END, check_choices, option, require

LENGTHS = ("steps", "minutes", "epochs")
SCHEDULES = ("warmup-then-decay", "warmup-times-decay", "warmup-replaces-decay")  # see fastlm/train/schedule.py


@dataclass(frozen=True)
class TrainConfig:
    """Holds the options of training.

    The length of a run is given by one of `steps`, `minutes` (turned into steps once, by a measurement) and `epochs`.
    An option with `free` in its metadata changes no loss, so a resumed run may change it. One with `later` was added
    after the first runs were recorded: a record without it means its default. Raises ValueError, naming the option, for
    a value out of range.
    """

    steps: int | None = option("length of the run in updates", None)
    minutes: float | None = option("length of the run in minutes, turned into steps by timing the first few", None)
    epochs: float | None = option("length of the run in passes over the data", None)
    phases: tuple[tuple[float, int], ...] = option("sequence lengths, as FRACTION:LENGTH,...", ((1.0, 128),))
    batch_size: int = option("sequences per update", 16)
    accumulation: int = option("micro-batches that a batch is split into", 1)
    learning_rate: float = option("peak of the learning rate", 2.5e-4)
    warmup: int = option("updates of linear warm-up (at most a tenth of the run)", 2000)
    warmup_fraction: float | None = option("warm-up as a fraction of the run, instead of --warmup", None, later=True)
    decay: str = option("shape of the decay to 0", "cosine", choices=("cosine", "linear"))
    schedule: str = option("how warm-up and decay are joined", SCHEDULES[0], choices=SCHEDULES, later=True)
    layer_decay: float = option("rate of a layer, as a multiple of the rate of the layer above it", 1.0, later=True)
    head_rate: float = option("rate of new layers, as a multiple of the learning rate", 1.0, later=True)
    beta1: float = option("decay of Adam's first moment", 0.9)
    beta2: float = option("decay of Adam's second moment", 0.999)
    epsilon: float = option("Adam's epsilon", 1e-8)
    bias_correction: bool = option("Adam's correction of moments that start at 0", True)
    rate_correction: bool = option(
        "that correction as a factor of the rate, weight decay included (needs --no-bias-correction)", False, later=True
    )
    weight_decay: float = option("decoupled weight decay of the matrices, embeddings included", 0.01)
    clip: float = option("largest global norm of the gradient (inf: no clipping)", 1.0)
    seed: int = option("seed of initialisation, dropout and data order", 0)
    whole_epochs: bool = option("no update spans two epochs: an incomplete last batch is dropped", False, later=True)
    validate_every: int = option("updates between validations", 1000)
    validate_each_epoch: bool = option("validate also at the end of each epoch", False, later=True)
    validation_batches: int = option("batches per validation during the run (0: all); the last takes all", 16)
    keep_best: bool = option("the model is that of the best validation, not that of the last update", False, later=True)
    patience: int | None = option("stop after so many validations in a row without a better one", None, later=True)
    checkpoint_every: int = option("updates between checkpoints", 1000, free=True)
    checkpoint_seconds: float = option("seconds between checkpoints, if these pass first", 600.0, free=True)

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "validate_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.patience is None or self.patience >= 1, "patience", "at least 1", self.patience)
        require(self.validation_batches >= 0, "validation_batches", "at least 0", self.validation_batches)
        for name in ("learning_rate", "epsilon", "clip", "head_rate", "checkpoint_seconds"):
            require(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        for name in ("beta1", "beta2", "weight_decay"):
            require(0 <= getattr(self, name) < 1, name, "at least 0 and below 1", getattr(self, name))
        for name in ("learning_rate", "epsilon"):
            require(getattr(self, name) < math.inf, name, "a finite number", getattr(self, name))
        require(self.batch_size < INTEGERS_END, "batch_size", "below 2^31", self.batch_size)
        for name in LENGTHS:
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, name, "a number above 0, and finite,", value)
        require(self.warmup >= 0, "warmup", "at least 0", self.warmup)
        fraction, decay = self.warmup_fraction, self.layer_decay
        require(fraction is None or 0 <= fraction <= 1, "warmup_fraction", "at least 0 and at most 1", fraction)
        require(0 < decay <= 1, "layer_decay", "above 0 and at most 1", decay)
        only_one = not (self.rate_correction and self.bias_correction)
        require(only_one, "rate_correction", "with it, no bias_correction", "both")
        require(0 <= self.seed < 1 << 63, "seed", "at least 0 and below 2^63", self.seed)
        divisor = f"a divisor of batch_size {self.batch_size}"
        require(self.batch_size % self.accumulation == 0, "accumulation", divisor, self.accumulation)
        given = [name for name in LENGTHS if getattr(self, name) is not None]
        require(len(given) == 1, ", ".join(LENGTHS), "exactly one of them", given)
        require(all(share >= 0 for share, _ in self.phases), "phases", "fractions of at least 0", self.phases)
        total = sum(fraction for fraction, _ in self.phases)
        require(abs(total - 1) < 1e-6, "phases", "fractions that sum to 1", total)
        require(all(length >= 2 for _, length in self.phases), "phases", "sequence lengths of at least 2", self.phases)
        by_epoch = self.whole_epochs or self.validate_each_epoch
        require(not by_epoch or len(self.phases) == 1, "phases", "with epochs of updates, one", self.phases)
        check_choices(self)

    @property
    def micro_batch_size(self) -> int:
        """Returns the number of sequences per micro-batch."""
        return self.batch_size // self.accumulation

    @property
    def max_length(self) -> int:
        """Returns the longest sequence length of the run."""
        return max(length for _, length in self.phases)

    def with_length(self, **lengths: Any) -> TrainConfig:
        """Returns this configuration with another length: `steps`, `minutes` or `epochs`."""
        return replace(self, **{**dict.fromkeys(LENGTHS), **lengths})
