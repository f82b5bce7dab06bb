"""Counter-based random numbers: any example of any epoch is drawn directly, without drawing those before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

# The purposes of streams of random numbers. Other numbers here would change every run.
ORDER, WINDOW_OFFSET, EXAMPLE, TRUNCATION, BIN_ORDER = range(5)
_ROUNDS = 6  # rounds of the Feistel network


def generator(seed: int, purpose: int, position: int) -> np.random.Generator:
    """Returns an independent generator for each (seed, purpose, position): NumPy's Philox-4x64."""
    key = np.array([seed, position], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, purpose, 0, 0], np.uint64)))


def generators(seed: int, purpose: int, positions: Iterable[int]) -> Iterator[np.random.Generator]:
    """Yields `generator(seed, purpose, position)` for each position; each is valid until the next one is taken.

    All are the same object with another state. Setting the state takes 2 us per position; a new object takes 8 us.
    """
    philox = np.random.Philox(key=0)
    shared, state = np.random.Generator(philox), philox.state
    state["state"]["counter"] = np.array([0, purpose, 0, 0], np.uint64)
    for position in positions:
        state["state"]["key"] = np.array([seed, position], np.uint64)
        philox.state = state
        yield shared


def check_seed(seed: int) -> int:
    """Returns the seed. Raises ValueError outside [0, 2^63)."""
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"seed: an integer in [0, 2^63) expected, got {seed}")
    return seed


def shuffled(start: int, count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions [start, start + count) of an endless sequence of `size` items, reordered at random each epoch.

    The result is the epoch and the item at each position, int64 (count,). Each epoch holds each item once. The cost is
    O(count) for any `start`.
    """
    positions = np.arange(start, start + count, dtype=np.int64)
    epochs, items = positions // size, positions % size
    for epoch in np.unique(epochs):
        keys = generator(seed, ORDER, int(epoch)).integers(0, 1 << 64, _ROUNDS, dtype=np.uint64)
        items[epochs == epoch] = permute(items[epochs == epoch], size, keys)
    return epochs, items


def permute(index: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Permutes [0, size) pseudo-randomly, by `keys`; returns the images of `index`, int64 in [0, size).

    A Feistel network with one round per key permutes [0, 4^h), the smallest such range that holds [0, size). An image
    outside [0, size) is permuted again until it is inside (cycle walking), so the result is still a permutation.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    image = index.astype(np.uint64)
    outside = np.ones(index.shape, bool)
    while outside.any():
        image[outside] = _feistel(image[outside], half, keys)
        outside = image >= size
    return image.astype(np.int64)


def _feistel(x: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return left << half | right


def _mix(x: np.ndarray) -> np.ndarray:
    """Computes SplitMix64's finaliser (Steele et al. 2014): every bit of x affects every bit of the result."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
