"""Dropout whose keep mask is a pure function of (seed, global coordinates).

Every backend draws the same bits, so dropout is tested exactly, forward and backward. The bits come
from Philox-4x32 with 7 rounds (Salmon et al., SC 2011): the key is the 64-bit seed, the counter holds
the coordinates, and each call's 128 bits decide 16 elements at 8 bits each. The keep probability is
therefore keep / 256, and kept elements are scaled by exactly 256 / keep, which is unbiased.

Coordinates are global. A call that holds a part of a batch says where the part begins: `first_row` (row
ops) or `first_sequence` (attention), one int64 on the device, beside the seed; None means 0. Then however a
batch is split between sequences, over micro-batches or ranks, its parts draw what the whole would draw.

The counter holds the lower half of a row's or head's 64-bit number. The upper half of the number is XORed onto
the upper half of the key, because another counter word would take a register in the kernels' inner loops.

Row ops (layer norm, embedding): element (n, c), n = first_row + the row's index in the call, takes byte
c % 16 of the call with counter (c // 16, n mod 2^32, 0, 0); it is kept if the byte is less than `keep`.

Attention: query i, key j of sequence b = first_sequence + its index in the call, and head h. A 16 x 16 tile
(I, J) = (i // 16, j // 16) takes 16 calls; call (r, c) serves rows {2r, 2r+1, 2r+8, 2r+9} and the same pattern
of columns, its counter being (4J + c, 4I + r, m mod 2^32, 1) with m = b * H + h. The 128 bits are eight 16-bit
planes, plane p being half p % 2 of word p // 2; bit 4*ii + jj of plane p is bit p of the element's 8-bit
number, which is compared with `keep`. i and j are positions in the sequence, of packed rows too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlm.keep import LEVELS, keep_count

__all__ = ["LEVELS", "attention_mask", "draw_seeds", "keep_count", "row_mask"]

ROUNDS = 7
MASK32 = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
EACH_ITS_BIT = 0x8040201008040201 - 2**64
ROW_DOMAIN, ATTENTION_DOMAIN = 0, 1  # the last counter word keeps the two kinds of mask apart


def draw_seeds(count: int, device: torch.device | str | None = None) -> Tensor:
    """`count` fresh seeds, int64 of shape (count,), from one draw of torch's default generator.

    A model draws once a forward and gives each dropout site a view of its own, `seeds[i : i + 1]`;
    under CUDA graphs each replay draws anew.
    """
    return torch.randint(-(2**63), 2**63 - 1, (count,), dtype=torch.int64, device=device)


def row_mask(seed: Tensor, rows: int, columns: int, keep: int, first_row: Tensor | None = None) -> Tensor:
    """Draws the keep mask of a row op: bool of shape (rows, columns) on the seed's device.

    `seed` and `first_row` hold one int64 each; None means 0.
    """
    n = _numbers_from(first_row, rows, seed.device)[:, None]
    group = torch.arange((columns + 15) // 16, device=seed.device)[None, :]
    words = _philox(_key(seed, n, first_row), group, n & MASK32, torch.zeros_like(n), ROW_DOMAIN)
    # Little-endian words, low byte first: the order in which a row's columns take them.
    octets = torch.stack(words, dim=-1).to(torch.int32).view(torch.uint8)
    return octets.reshape(rows, 16 * group.shape[1])[:, :columns] < keep


def attention_mask(
    seed: Tensor, batch: int, heads: int, queries: int, keys: int, keep: int, first_sequence: Tensor | None = None
) -> Tensor:
    """Draws the keep mask of attention probabilities: bool of shape (batch, heads, queries, keys).

    `seed` and `first_sequence` hold one int64 each; None means 0.
    """
    tiles_i, tiles_j = (queries + 15) // 16, (keys + 15) // 16
    device = seed.device
    # Calls lie as (c, r, batch * heads, I, J), short dimensions first, which is what makes this fast on a CPU.
    four = torch.arange(4, device=device)
    column = 4 * torch.arange(tiles_j, device=device) + four.view(4, 1, 1, 1, 1)
    row = 4 * torch.arange(tiles_i, device=device)[:, None] + four.view(4, 1, 1, 1)
    first_head = None if first_sequence is None else first_sequence * heads
    head = _numbers_from(first_head, batch * heads, device).view(-1, 1, 1)
    words = _philox(_key(seed, head, first_sequence), column, row, head & MASK32, ATTENTION_DOMAIN)
    bits = _planes_below(words, keep)
    # Bit 8*i2 + 4*i1 + 2*j2 + j1 of call (I, r, J, c) is row 16I + 8*i2 + 2r + i1, column 16J + 8*j2 + 2c + j1:
    # the pairs of bits j1 of the four c make the octet (i2, i1, j2) of (r, batch * heads, I, J).
    pairs = torch.arange(0, 16, 2, device=device, dtype=torch.int32).view(8, 1, 1, 1, 1)
    octets = sum((bits[c] >> pairs & 3) << 2 * c for c in range(4)).long()
    octets = octets.view(2, 2, 2, 4, batch * heads, tiles_i, tiles_j).permute(4, 5, 0, 3, 1, 6, 2)
    # Eight copies of an octet, of which byte n keeps bit n.
    kept = (octets * 0x0101010101010101 & EACH_ITS_BIT).contiguous().view(torch.uint8) != 0
    return kept.view(batch, heads, 16 * tiles_i, 16 * tiles_j)[:, :, :queries, :keys]


def _numbers_from(first: Tensor | None, count: int, device: torch.device) -> Tensor:
    """Returns first, first + 1, ... of shape (count,)."""
    numbers = torch.arange(count, device=device)
    return numbers if first is None else numbers + first


def _key(seed: Tensor, numbers: Tensor, first: Tensor | None) -> Tensor:
    """Returns the keys for rows or heads of these numbers: the seed for those below 2^32, as all are from 0 on."""
    return seed if first is None else seed ^ (numbers >> 32 << 32)


def _planes_below(words: tuple[Tensor, ...], keep: int) -> Tensor:
    """For each of 16 bit positions: is the 8-bit number spread over the eight planes less than `keep`?

    From the lowest plane up, below = (x < k) or (x == k and below): with k's bit set that is ~x | below,
    with it clear ~x & below.
    """
    below = torch.zeros_like(words[0], dtype=torch.int32)
    for p in range(8):
        plane = (words[p // 2] >> (16 * (p % 2))).to(torch.int32)
        below = (~plane | below) if (keep >> p) & 1 else (~plane & below)
    return below


def _philox(key: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-7 in int64 arithmetic on 32-bit words; products wrap, which leaves both halves right."""
    k0, k1 = key & MASK32, (key >> 32) & MASK32
    for _ in range(ROUNDS):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        high0, high1 = (product0 >> 32) & MASK32, (product1 >> 32) & MASK32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, product1 & MASK32, high0 ^ c3 ^ k1, product0 & MASK32
        k0, k1 = (k0 + WEYL[0]) & MASK32, (k1 + WEYL[1]) & MASK32
    return torch.broadcast_tensors(c0, c1, c2, c3)
