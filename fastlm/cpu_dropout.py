"""Keep masks on the CPU: the bits of `fastlm.dropout`, drawn in less time, and once for both passes.

numpy has unsigned integers, and takes half as long as torch for one operation. The operands of Philox's first rounds
stay as small as they are (a column of rows, a row of columns), and words are masked to 32 bits only where a product
follows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastlm.dropout import ATTENTION_DOMAIN, EACH_ITS_BIT, MASK32, MULTIPLIERS, ROUNDS, ROW_DOMAIN, WEYL

KEPT_BYTES = 1 << 26  # of masks that wait for their backward; what goes beyond is drawn again

_waiting: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()


def row_mask(seed: Tensor, rows: int, columns: int, keep: int, *, last_use: bool) -> Tensor:
    """The keep mask of a row op, float32 0 or 1 of shape (rows, columns).

    last_use: False in a forward, after which the mask waits for the backward, which gives True.
    """
    key = (ROW_DOMAIN, seed.item(), 0, rows, columns, keep)
    return as_float(_once(key, last_use, _draw_rows))


def attention_mask(
    seed: Tensor, first: int, batch: int, heads: int, length: int, keep: int, *, last_use: bool
) -> Tensor:
    """The keep mask of attention probabilities, bool of shape (batch, heads, length, length).

    first: the number of the first sequence. last_use: as in `row_mask`.
    """
    key = (ATTENTION_DOMAIN, seed.item(), first, batch, heads, length, keep)
    return _once(key, last_use, _draw_attention)


def _once(key: tuple[int, ...], last_use: bool, draw: Callable[..., Tensor]) -> Tensor:
    """The mask of a key, drawn or left by the forward."""
    if last_use:
        found = _waiting.pop(key, None)
        return draw(*key[1:]) if found is None else found
    mask = _waiting[key] = draw(*key[1:])
    while sum(waiting.numel() for waiting in list(_waiting.values())) > KEPT_BYTES:
        _waiting.popitem(last=False)
    return mask


def as_float(mask: Tensor) -> Tensor:
    """A mask of bools as float32 0 or 1. Seen as bytes it takes a tenth of the time."""
    return mask.view(torch.uint8).to(torch.float32)


def _draw_rows(seed: int, first: int, rows: int, columns: int, keep: int) -> Tensor:
    n, group = _numbers(first, rows)[:, None], _numbers(0, (columns + 15) // 16)
    words = _philox(seed, group, n & np.uint64(MASK32), n >> np.uint64(32), np.uint64(ROW_DOMAIN))
    # Little-endian words, low byte first: the order in which a row's columns take them.
    taken = np.empty((*words[0].shape, 4), np.uint32)
    for i, word in enumerate(words):
        taken[..., i] = word
    return torch.from_numpy(taken.view(np.uint8).reshape(rows, 16 * len(group))[:, :columns] < keep)


def _draw_attention(seed: int, first: int, batch: int, heads: int, length: int, keep: int) -> Tensor:
    tiles = (length + 15) // 16
    # Calls lie as (c, r, batch * heads, I, J), short dimensions first.
    four, tile = _numbers(0, 4), _numbers(0, 4 * tiles)[::4]
    head = _numbers(first * heads, batch * heads).reshape(-1, 1, 1)
    column, row = tile + four.reshape(4, 1, 1, 1, 1), tile[:, None] + four.reshape(4, 1, 1, 1)
    words = _philox(seed, column, row, head & np.uint64(MASK32), np.uint64(ATTENTION_DOMAIN))
    bits = _planes_below([word.astype(np.uint32) for word in words], keep)
    # Bit 8*i2 + 4*i1 + 2*j2 + j1 of call (I, r, J, c) is row 16I + 8*i2 + 2r + i1, column 16J + 8*j2 + 2c + j1:
    # the pairs of bits j1 of the four c make the octet (i2, i1, j2) of (r, batch * heads, I, J).
    pairs = np.arange(0, 16, 2, dtype=np.uint32).reshape(8, 1, 1, 1, 1)
    octets = bits[0] >> pairs & np.uint32(3)
    for c in range(1, 4):
        octets |= (bits[c] >> pairs & np.uint32(3)) << np.uint32(2 * c)
    octets = octets.reshape(2, 2, 2, 4, batch * heads, tiles, tiles).transpose(4, 5, 0, 3, 1, 6, 2)
    # Eight copies of an octet, of which byte n keeps bit n.
    spread = octets.astype(np.uint64, order="C")
    spread *= np.uint64(0x0101010101010101)
    spread &= np.uint64(EACH_ITS_BIT % 2**64)
    kept = spread.view(np.uint8) != 0
    return torch.from_numpy(kept.reshape(batch, heads, 16 * tiles, 16 * tiles)[:, :, :length, :length])


def _planes_below(words: list[np.ndarray], keep: int) -> np.ndarray:
    """As `fastlm.dropout._planes_below`; what lies above bit 15 of the result means nothing."""
    lowest = (keep & -keep).bit_length() - 1  # below it nothing is less than `keep`
    below = np.uint32(0)
    for p in range(lowest, 8):
        plane = ~(words[p // 2] >> np.uint32(16) if p % 2 else words[p // 2])
        below = plane | below if keep >> p & 1 else plane & below
    return below


def _numbers(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.int64).view(np.uint64)


def _philox(seed: int, c0: np.ndarray, c1: np.ndarray, c2: np.ndarray, c3: np.ndarray | np.uint64) -> list[np.ndarray]:
    """Philox-4x32-7: four words of one shape, uint64, of which the low 32 bits count."""
    keys = [seed & MASK32, seed >> 32 & MASK32]
    for turn in range(ROUNDS):
        p0, p1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = _mixed(p1, c1, keys[0]), p1, _mixed(p0, c3, keys[1]), p0
        if turn < ROUNDS - 1:
            c0 &= np.uint64(MASK32)
            c2 &= np.uint64(MASK32)
        keys = [key + weyl & MASK32 for key, weyl in zip(keys, WEYL, strict=True)]
    return np.broadcast_arrays(c0, c1, c2, c3)


def _mixed(product: np.ndarray, other: np.ndarray | np.uint64, key: int) -> np.ndarray:
    high = product >> np.uint64(32)
    high ^= np.uint64(key)
    return high ^ other
