"""GPT-1's batches: contiguous windows of the token stream, each predicting its next tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastlm.data.corpus import DataError
from fastlm.data.sampling import WINDOW_OFFSET, check_seed, generator, shuffled
from fastlm.data.shards import Shards


class Windows:
    """Makes GPT-1's batches: B = `batch_size` windows of S = `sequence_length` tokens each.

    An epoch cuts the token stream into windows from a random offset in [0, S) on, and reads each window once, in a
    random order. Offset and order are new each epoch. Each token is a target exactly once per epoch, except fewer than
    2 S tokens at the two ends of the stream. A batch may hold the last windows of an epoch and the first of the next.
    `batch(step)` depends on (seed, step) alone.

    windows: windows per epoch. batches_per_epoch: whole batches per epoch, at least 1.
    """

    def __init__(self, shards: Shards, split: str, sequence_length: int, batch_size: int, seed: int):
        if sequence_length < 1:
            raise ValueError(f"sequence_length: at least 1 expected, got {sequence_length}")
        if batch_size < 1:
            raise ValueError(f"batch_size: at least 1 expected, got {batch_size}")
        self._tokens = shards.split(split).tokens
        self.sequence_length, self.batch_size, self.seed = sequence_length, batch_size, check_seed(seed)
        # The number that fits at every offset, so that all epochs have the same length.
        self.windows = len(self._tokens) // sequence_length - 1
        if self.windows < 1:
            raise DataError(
                f"{shards.path}: {len(self._tokens)} {split} tokens, but sequences of {sequence_length} tokens need "
                f"{2 * sequence_length}; give more text, or shorter sequences (--phases)"
            )
        self.batches_per_epoch = max(1, self.windows // batch_size)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Returns the batch of a step (from 0): "tokens" and "targets", the token after each, both (B, S) int64."""
        epochs, windows = shuffled(step * self.batch_size, self.batch_size, self.windows, self.seed)
        starts = self._offsets(epochs) + windows * self.sequence_length
        rows = self._tokens[starts[:, None] + np.arange(self.sequence_length + 1)].astype(np.int64)
        return {"tokens": torch.from_numpy(rows[:, :-1].copy()), "targets": torch.from_numpy(rows[:, 1:].copy())}

    def _offsets(self, epochs: np.ndarray) -> np.ndarray:
        """Draws the offset of each epoch."""
        distinct, where = np.unique(epochs, return_inverse=True)
        drawn = [generator(self.seed, WINDOW_OFFSET, int(e)).integers(self.sequence_length) for e in distinct]
        return np.array(drawn, np.int64)[where]
