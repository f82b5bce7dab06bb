"""Batches of labelled examples: padded, binned by length, or packed without padding."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastlm.data.corpus import DataError
from fastlm.data.labelled.encode import IGNORED, Encodings
from fastlm.data.sampling import BIN_ORDER, check_seed, generator, shuffled

LAYOUTS = ("padded", "binned", "packed")
POOL = 64  # batches whose examples are sorted by length together
MULTIPLE = 8  # widths of binned batches are multiples of this, so that there are few of them
PER_TOKEN = ("tag_targets",)  # targets with an entry per token; the others have one per item


def collate(
    encodings: Encodings,
    items: np.ndarray,
    width: int | None,
    *,
    pad: int = 0,
    rows: bool = False,
    segments: bool = False,
    next_tokens: bool = False,
) -> dict[str, Tensor]:
    """Returns the batch of some items (B,), by the names of `Model.forward`'s arguments.

    Args:
        width: S, at least the longest sequence, for padded sequences (B k, S) with `lengths`; None for packed ones (T,)
            with `cu_seqlens`. k is `encodings.per_item`.
        pad: the token behind a padded sequence.
        rows: whether to add "rows", (B,) or (B, k) int64, for heads on whole sequences.
        segments: whether to add "segments".
        next_tokens: whether to add "targets", the token after each (the last one of a sequence predicts nothing).

    Returns:
        What was asked for, and the targets of the encodings.
    """
    k = encodings.per_item
    sequences = (items[:, None] * k + np.arange(k)).ravel()
    starts = encodings.starts[sequences]
    lengths = encodings.starts[sequences + 1] - starts
    ends = np.cumsum(lengths)
    position = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    source = np.repeat(starts, lengths) + position
    valid = None if width is None else np.arange(width) < lengths[:, None]

    def laid_out(values: np.ndarray, fill: int) -> Tensor:
        if valid is None:
            return torch.from_numpy(values.astype(np.int64))
        padded = np.full(valid.shape, fill, np.int64)
        padded[valid] = values
        return torch.from_numpy(padded)

    batch = {"tokens": laid_out(encodings.tokens[source], pad)}
    if segments:
        batch["segments"] = laid_out(position >= np.repeat(encodings.second[sequences], lengths), 0)
    if width is None:
        batch["cu_seqlens"] = torch.from_numpy(np.concatenate(([0], ends)).astype(np.int32))
    else:
        batch["lengths"] = torch.from_numpy(lengths.astype(np.int32))
    if next_tokens:
        following = encodings.tokens[np.minimum(source + 1, len(encodings.tokens) - 1)].astype(np.int64)
        following[ends - 1] = IGNORED
        batch["targets"] = laid_out(following, IGNORED)
    if rows:
        first = ends - lengths if width is None else np.arange(len(sequences)) * width
        read = torch.from_numpy(first + encodings.rows[sequences])
        batch["rows"] = read if k == 1 else read.view(-1, k)
    for name, values in encodings.targets.items():
        if name in PER_TOKEN:
            batch[name] = laid_out(values[source], IGNORED)
        else:
            of_items = torch.from_numpy(values[items])
            batch[name] = of_items if of_items.is_floating_point() else of_items.long()
    return batch


class LabelledBatches:
    """Makes batches of `batch_size` items; `batch(step)` depends on (seed, step) alone.

    In training an epoch reads the items in a new random order and drops the incomplete last batch. Otherwise the items
    have their own order, the last batch may be incomplete, and a batch also holds "items" (B,) int64, their numbers.

    layout: "padded": all batches are as wide as the longest sequence. "binned": a batch is as wide as its longest
    sequence, and in training has items of similar lengths: POOL batches of the random order are sorted by length, and
    then come in a random order. "packed": no padding. weights: (items,), how much each counts in a mean loss; None: the
    same. options: those of `collate`.

    batches_per_epoch: at least 1. padding: the fraction of an epoch's tokens that is padding. warnings: a sentence on
    the sizes. Raises DataError if there are fewer items than a batch of training holds.
    """

    def __init__(
        self,
        encodings: Encodings,
        batch_size: int,
        seed: int,
        *,
        layout: str,
        train: bool,
        source: str = "data",
        weights: np.ndarray | None = None,
        **options: Any,
    ):
        if layout not in LAYOUTS:
            raise ValueError(f"layout: one of {', '.join(LAYOUTS)} expected, got {layout!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size: at least 1 expected, got {batch_size}")
        if train and len(encodings) < batch_size:
            raise DataError(
                f"{source}: {len(encodings)} inputs do not fill one batch of {batch_size}, "
                "and training drops an incomplete one; give a smaller batch_size"
            )
        self.encodings, self.batch_size, self.seed = encodings, batch_size, check_seed(seed)
        self.layout, self.train = layout, train
        self._options, self._weights = options, weights
        self._lengths = encodings.item_lengths
        self._longest = int(self._lengths.max())
        self.batches_per_epoch = len(encodings) // batch_size if train else -(-len(encodings) // batch_size)
        self._sorted_pool = lru_cache(maxsize=2)(self._make_sorted_pool)
        self.padding = self._padding()
        self.warnings = (
            f"{source}: {len(encodings):,} inputs, {self._lengths.mean():.0f} tokens on average and at most "
            f"{self._longest}; batches are {layout}, {self.padding:.1%} of their tokens is padding",
        )

    def batch(self, step: int) -> dict[str, Tensor]:
        """Returns the batch of a step (from 0); see `collate`."""
        items = self._items(step)
        batch = collate(self.encodings, items, self._width(items), **self._options)
        return batch if self.train else batch | {"items": torch.from_numpy(items)}

    def weight(self, step: int) -> float:
        """Returns how much the mean loss of a batch counts beside those of other batches."""
        return float(self.batch_size if self._weights is None else self._weights[self._items(step)].sum())

    def _items(self, step: int) -> np.ndarray:
        epoch, index = divmod(step, self.batches_per_epoch)
        if not self.train:
            begin = index * self.batch_size
            return np.arange(begin, min(begin + self.batch_size, len(self.encodings)))
        if self.layout == "binned":
            pool, place = divmod(index, POOL)
            return self._sorted_pool(epoch, pool)[place]
        return self._shuffled(epoch, index, 1)

    def _shuffled(self, epoch: int, index: int, batches: int) -> np.ndarray:
        """Returns the items of some batches of an epoch's random order, from batch `index` on."""
        start = epoch * len(self.encodings) + index * self.batch_size
        return shuffled(start, batches * self.batch_size, len(self.encodings), self.seed)[1]

    def _make_sorted_pool(self, epoch: int, pool: int) -> np.ndarray:
        """Returns the items of a pool's batches, (batches, batch_size): of similar lengths, in a random order."""
        count = min(POOL, self.batches_per_epoch - pool * POOL)
        items = self._shuffled(epoch, pool * POOL, count)
        batches = items[np.argsort(self._lengths[items], kind="stable")].reshape(count, -1)
        pools = -(-self.batches_per_epoch // POOL)
        return batches[generator(self.seed, BIN_ORDER, epoch * pools + pool).permutation(count)]

    def _width(self, items: np.ndarray) -> int | None:
        if self.layout == "packed":
            return None
        if self.layout == "padded":
            return self._longest
        return min(-(-int(self._lengths[items].max()) // MULTIPLE) * MULTIPLE, self._longest)

    def _padding(self) -> float:
        """Returns the fraction of padding in the first epoch."""
        if self.layout == "packed":
            return 0.0
        real = laid_out = 0
        lengths = self.encodings.lengths.reshape(-1, self.encodings.per_item).sum(1)
        if self.layout == "padded":
            return 1 - lengths.mean() / (self.encodings.per_item * self._longest)
        for items in map(self._items, range(self.batches_per_epoch)):
            real += int(lengths[items].sum())
            laid_out += len(items) * self.encodings.per_item * self._width(items)
        return 1 - real / laid_out
