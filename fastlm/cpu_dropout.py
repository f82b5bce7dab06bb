"""Draws keep masks on the CPU: the bits of `fastlm.dropout` in less time, and once for forward and backward.

numpy has unsigned integers and takes half the time of torch per operation. The operands of Philox's first rounds stay
small (one column for all rows, one row for all columns), and words are masked to 32 bits only before a product.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastlm.dropout import ATTENTION_DOMAIN, BIT_N_OF_BYTE_N, MASK32, MULTIPLIERS, ROUNDS, ROW_DOMAIN, WEYL

KEPT_BYTES = 1 << 26  # of masks kept for their backward; if there are more, the oldest are freed and drawn again

_kept: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()


def row_mask(seed: Tensor, rows: int, columns: int, keep: int, first_row: Tensor | None, *, last_use: bool) -> Tensor:
    """Returns the keep mask of a row op, float32 0 or 1 of shape (rows, columns).

    last_use: False in a forward, which keeps the mask for the backward; True in the backward.
    """
    key = (ROW_DOMAIN, seed.item(), _index(first_row), rows, columns, keep)
    return as_float(_drawn_once(key, last_use, _draw_rows))


def attention_mask(
    seed: Tensor, first: int, batch: int, heads: int, length: int, keep: int, *, last_use: bool
) -> Tensor:
    """Returns the keep mask of attention probabilities, bool of shape (batch, heads, length, length).

    first: the global index of the first sequence. last_use: as in `row_mask`.
    """
    key = (ATTENTION_DOMAIN, seed.item(), first * heads, batch * heads, length, keep)
    return _drawn_once(key, last_use, _draw_heads).view(batch, heads, length, length)


def _index(first: Tensor | None) -> int:
    return 0 if first is None else first.item()


def _drawn_once(key: tuple[int, ...], last_use: bool, draw: Callable[..., Tensor]) -> Tensor:
    """Returns the mask of a key: the one that the forward kept, or a new one."""
    if last_use:
        found = _kept.pop(key, None)
        return draw(*key[1:]) if found is None else found
    new = _kept[key] = draw(*key[1:])
    while sum(mask.numel() for mask in list(_kept.values())) > KEPT_BYTES:
        _kept.popitem(last=False)
    return new


def as_float(mask: Tensor) -> Tensor:
    """Returns a bool mask as float32 0 or 1. Read as bytes, it is cast in a tenth of the time (measured)."""
    return mask.view(torch.uint8).to(torch.float32)


def _draw_rows(seed: int, first: int, rows: int, columns: int, keep: int) -> Tensor:
    """Draws the mask of rows first, first + 1, ...: bool (rows, columns)."""
    below = _below_the_next_half(first, rows)
    if below < rows:
        parts = (_draw_rows(seed, first, below, columns, keep),
                 _draw_rows(seed, first + below, rows - below, columns, keep))  # fmt: skip
        return torch.cat(parts)
    n, group = _low_words(first, rows)[:, None], _low_words(0, (columns + 15) // 16)
    words = _philox(_key(seed, first), group, n, np.uint64(0), np.uint64(ROW_DOMAIN))
    # Columns take the bytes of a word in order, from the lowest on (words are little-endian).
    octets = np.empty((*words[0].shape, 4), np.uint32)
    for i, word in enumerate(words):
        octets[..., i] = word
    return torch.from_numpy(octets.view(np.uint8).reshape(rows, 16 * len(group))[:, :columns] < keep)


def _draw_heads(seed: int, first: int, count: int, length: int, keep: int) -> Tensor:
    """Draws the masks of heads first, first + 1, ..., with head index b * H + h: bool (count, length, length)."""
    below = _below_the_next_half(first, count)
    if below < count:
        parts = (_draw_heads(seed, first, below, length, keep),
                 _draw_heads(seed, first + below, count - below, length, keep))  # fmt: skip
        return torch.cat(parts)
    tiles = (length + 15) // 16
    # The calls have shape (c, r, count, I, J). Short dimensions come first.
    four, tile, head = _low_words(0, 4), _low_words(0, 4 * tiles)[::4], _low_words(first, count).reshape(-1, 1, 1)
    column, row = tile + four.reshape(4, 1, 1, 1, 1), tile[:, None] + four.reshape(4, 1, 1, 1)
    words = _philox(_key(seed, first), column, row, head, np.uint64(ATTENTION_DOMAIN))
    bits = _planes_below([word.astype(np.uint32) for word in words], keep)
    # As in fastlm.dropout, two bits of each of the four calls c make an octet, 8 neighbouring columns of a row.
    pairs = np.arange(0, 16, 2, dtype=np.uint32).reshape(8, 1, 1, 1, 1)
    octets = bits[0] >> pairs & np.uint32(3)
    for c in range(1, 4):
        octets |= (bits[c] >> pairs & np.uint32(3)) << np.uint32(2 * c)
    octets = octets.reshape(2, 2, 2, 4, count, tiles, tiles).transpose(4, 5, 0, 3, 1, 6, 2)
    # Each octet is copied into 8 bytes, and byte n keeps only bit n.
    spread = octets.astype(np.uint64, order="C")
    spread *= np.uint64(0x0101010101010101)
    spread &= np.uint64(BIT_N_OF_BYTE_N % 2**64)
    kept = spread.view(np.uint8) != 0
    return torch.from_numpy(kept.reshape(count, 16 * tiles, 16 * tiles)[:, :length, :length])


def _planes_below(words: list[np.ndarray], keep: int) -> np.ndarray:
    """Computes `fastlm.dropout._planes_below`. Bits above bit 15 of the result have no meaning."""
    lowest = (keep & -keep).bit_length() - 1  # `below` is 0 in the planes under the lowest set bit of keep
    below = np.uint32(0)
    for p in range(lowest, 8):
        plane = ~(words[p // 2] >> np.uint32(16) if p % 2 else words[p // 2])
        below = plane | below if keep >> p & 1 else plane & below
    return below


def _below_the_next_half(first: int, count: int) -> int:
    """Returns how many of the indices first, first + 1, ... share the upper 32 bits of first."""
    return min(count, 2**32 - (first & MASK32))


def _low_words(first: int, count: int) -> np.ndarray:
    """Returns the low 32 bits of first, first + 1, ..., which share their upper bits."""
    start = first & MASK32
    return np.arange(start, start + count, dtype=np.uint64)


def _key(seed: int, number: int) -> int:
    return seed ^ (number >> 32 << 32)


def _philox(key: int, c0: np.ndarray, c1: np.ndarray, c2: np.ndarray | np.uint64, c3: np.uint64) -> list[np.ndarray]:
    """Computes Philox-4x32-7: four words of one shape, uint64, whose upper 32 bits have no meaning."""
    keys = [key & MASK32, key >> 32 & MASK32]
    for turn in range(ROUNDS):
        p0, p1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = _mix(p1, c1, keys[0]), p1, _mix(p0, c3, keys[1]), p0
        if turn < ROUNDS - 1:
            c0 &= np.uint64(MASK32)
            c2 &= np.uint64(MASK32)
        keys = [k + weyl & MASK32 for k, weyl in zip(keys, WEYL, strict=True)]
    return np.broadcast_arrays(c0, c1, c2, c3)


def _mix(product: np.ndarray | np.uint64, other: np.ndarray | np.uint64, key: int) -> np.ndarray:
    return (product >> np.uint64(32) ^ np.uint64(key)) ^ other
