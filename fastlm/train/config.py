"""The configuration of training: length, batches, optimizer, schedule, validation, checkpoints. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from fastlm._options import INTEGERS_END, check_choices, option, require

LENGTHS = ("steps", "minutes", "epochs")


@dataclass(frozen=True)
class TrainConfig:
    """Holds the options of training.

    The length of a run is given by one of `steps`, `minutes` (turned into steps once, by a measurement) and `epochs`.
    An option with `free` in its metadata changes no loss, so a resumed run may change it. Raises ValueError, naming the
    option, for a value out of range.
    """

    steps: int | None = option("length of the run in updates", None)
    minutes: float | None = option("length of the run in minutes, turned into steps by timing the first few", None)
    epochs: float | None = option("length of the run in passes over the data", None)
    phases: tuple[tuple[float, int], ...] = option("sequence lengths, as FRACTION:LENGTH,...", ((1.0, 128),))
    batch_size: int = option("sequences per update", 16)
    accumulation: int = option("micro-batches that a batch is split into", 1)
    learning_rate: float = option("peak of the learning rate", 2.5e-4)
    warmup: int = option("updates of linear warm-up (at most a tenth of the run)", 2000)
    decay: str = option("shape of the decay to 0", "cosine", choices=("cosine", "linear"))
    beta1: float = option("decay of Adam's first moment", 0.9)
    beta2: float = option("decay of Adam's second moment", 0.999)
    epsilon: float = option("Adam's epsilon", 1e-8)
    bias_correction: bool = option("Adam's correction of moments that start at 0", True)
    weight_decay: float = option("decoupled weight decay of the matrices, embeddings included", 0.01)
    clip: float = option("largest global norm of the gradient (inf: no clipping)", 1.0)
    seed: int = option("seed of initialisation, dropout and data order", 0)
    validate_every: int = option("updates between validations", 1000)
    validation_batches: int = option("batches per validation during the run; the last validation takes all", 16)
    checkpoint_every: int = option("updates between checkpoints", 1000, free=True)
    checkpoint_seconds: float = option("seconds between checkpoints, if these pass first", 600.0, free=True)

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "validate_every", "validation_batches", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("learning_rate", "epsilon", "clip", "checkpoint_seconds"):
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
        require(0 <= self.seed < 1 << 63, "seed", "at least 0 and below 2^63", self.seed)
        divisor = f"a divisor of batch_size {self.batch_size}"
        require(self.batch_size % self.accumulation == 0, "accumulation", divisor, self.accumulation)
        given = [name for name in LENGTHS if getattr(self, name) is not None]
        require(len(given) == 1, ", ".join(LENGTHS), "exactly one of them", given)
        require(all(share >= 0 for share, _ in self.phases), "phases", "fractions of at least 0", self.phases)
        total = sum(fraction for fraction, _ in self.phases)
        require(abs(total - 1) < 1e-6, "phases", "fractions that sum to 1", total)
        require(all(length >= 2 for _, length in self.phases), "phases", "sequence lengths of at least 2", self.phases)
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
