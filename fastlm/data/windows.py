"""GPT-1's batches: contiguous windows of the token stream, each predicting its next tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastlm.data.corpus import DataError
from fastlm.data.sampling import PHASE, check_seed, generator, shuffled
from fastlm.data.shards import Shards


class Windows:
    """Windows of `sequence_length` S tokens of a split, `batch_size` B at a time, each once an epoch.

    An epoch cuts the stream at a random phase in [0, S) and reads the windows in a random order, both new each epoch;
    but for fewer than 2 S tokens at the stream's ends, every token is then a target exactly once. Batches run on over
    the ends of epochs. `batch(step)` depends on (seed, step) alone.

    windows: number an epoch. batches_per_epoch: whole batches among them, at least 1.
    """

    def __init__(self, shards: Shards, split: str, sequence_length: int, batch_size: int, seed: int):
        if sequence_length < 1:
            raise ValueError(f"sequence_length: at least 1 expected, got {sequence_length}")
        if batch_size < 1:
            raise ValueError(f"batch_size: at least 1 expected, got {batch_size}")
        self._tokens = shards.split(split).tokens
        self.sequence_length, self.batch_size, self.seed = sequence_length, batch_size, check_seed(seed)
        # Whatever the phase, so that epochs are of one length.
        self.windows = len(self._tokens) // sequence_length - 1
        if self.windows < 1:
            raise DataError(
                f"split: {shards.path} has {len(self._tokens)} {split} tokens; windows of sequence_length "
                f"{sequence_length} need {2 * sequence_length}, so more text or shorter windows"
            )
        self.batches_per_epoch = max(1, self.windows // batch_size)

    def batch(self, step: int) -> dict[str, Tensor]:
        """The batch of a step (from 0): "tokens" and "targets", the tokens one further on, both (B, S) int64."""
        epochs, windows = shuffled(step * self.batch_size, self.batch_size, self.windows, self.seed)
        starts = self._phases(epochs) + windows * self.sequence_length
        rows = self._tokens[starts[:, None] + np.arange(self.sequence_length + 1)].astype(np.int64)
        return {"tokens": torch.from_numpy(rows[:, :-1].copy()), "targets": torch.from_numpy(rows[:, 1:].copy())}

    def _phases(self, epochs: np.ndarray) -> np.ndarray:
        distinct, where = np.unique(epochs, return_inverse=True)
        drawn = [generator(self.seed, PHASE, int(e)).integers(self.sequence_length) for e in distinct]
        return np.array(drawn, np.int64)[where]
