"""Dropout whose keep mask is a pure function of the seed and of global coordinates.

Every backend draws the same bits, so tests compare dropout exactly, forward and backward. The bits come from
Philox-4x32 with 7 rounds (Salmon et al., SC 2011). The key is the 64-bit seed, and the counter of four 32-bit words
holds the coordinates. The 128 bits of one call decide 16 elements: each has an 8-bit number, and is kept if the number
is less than `keep`. So the keep probability is keep / 256, and kept elements are scaled by exactly 256 / keep.

Coordinates are global. If a call has only a part of the batch, it says where the part begins: `first_row` (row ops) or
`first_sequence` (attention), one int64 on the device; None means 0. Parts of a batch (micro-batches, ranks) therefore
draw the same masks as the whole batch would.

    op                                  counter                               elements of one call
    row op: row n, column c             (c // 16, n mod 2^32, 0, 0)           columns 16 (c // 16) + 0 ... 15
    attention: head m = b * H + h,      (4J + c, 4I + r, m mod 2^32, 1)       16 of the 16 x 16 tile (I, J): below
    query i, key j                      (I, J) = (i // 16, j // 16)

n and b count from first_row and first_sequence. i and j are positions in the sequence, also in packed batches. The
upper half of n or m is XORed onto the upper half of the key, because one more counter word would take a register in
the kernels' inner loops.

Row ops (layer norm, embedding): column c has byte c % 16 of its call.

Attention: a tile of 16 x 16 probabilities takes 16 calls, r = 0 ... 3 and c = 0 ... 3. Each cell shows r and c of the
call of that element, so a call serves rows {2r, 2r + 1, 2r + 8, 2r + 9} and the same pattern of columns:

       j % 16     0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15
    i % 16
            0    00 00 01 01 02 02 03 03 00 00 01 01 02 02 03 03
            1    00 00 01 01 02 02 03 03 00 00 01 01 02 02 03 03
            2    10 10 11 11 12 12 13 13 10 10 11 11 12 12 13 13
            3    10 10 11 11 12 12 13 13 10 10 11 11 12 12 13 13
            4    20 20 21 21 22 22 23 23 20 20 21 21 22 22 23 23
            5    20 20 21 21 22 22 23 23 20 20 21 21 22 22 23 23
            6    30 30 31 31 32 32 33 33 30 30 31 31 32 32 33 33
            7    30 30 31 31 32 32 33 33 30 30 31 31 32 32 33 33
            8    00 00 01 01 02 02 03 03 00 00 01 01 02 02 03 03
            9    00 00 01 01 02 02 03 03 00 00 01 01 02 02 03 03
           10    10 10 11 11 12 12 13 13 10 10 11 11 12 12 13 13
           11    10 10 11 11 12 12 13 13 10 10 11 11 12 12 13 13
           12    20 20 21 21 22 22 23 23 20 20 21 21 22 22 23 23
           13    20 20 21 21 22 22 23 23 20 20 21 21 22 22 23 23
           14    30 30 31 31 32 32 33 33 30 30 31 31 32 32 33 33
           15    30 30 31 31 32 32 33 33 30 30 31 31 32 32 33 33

The 16 elements e of a call are numbered by row and column:

                 column 2c    2c + 1    2c + 8    2c + 9
    row 2r               0         1         2         3
    row 2r + 1           4         5         6         7
    row 2r + 8           8         9        10        11
    row 2r + 9          12        13        14        15

The 128 bits of a call are eight planes of 16 bits. Plane p is half p % 2 (0: the lower one) of word p // 2. Bit e of
plane p is bit p of the 8-bit number of element e.
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
BIT_N_OF_BYTE_N = 0x8040201008040201 - 2**64
ROW_DOMAIN, ATTENTION_DOMAIN = 0, 1  # the last word of the counter


def draw_seeds(count: int, device: torch.device | str | None = None) -> Tensor:
    """Draws `count` seeds, int64 of shape (count,), with one call of torch's default generator.

    A model calls this once per forward and gives each dropout layer its own view, `seeds[i : i + 1]`. In a CUDA graph
    each replay draws new seeds.
    """
    return torch.randint(-(2**63), 2**63 - 1, (count,), dtype=torch.int64, device=device)


def row_mask(seed: Tensor, rows: int, columns: int, keep: int, first_row: Tensor | None = None) -> Tensor:
    """Draws the keep mask of a row op: bool of shape (rows, columns) on the seed's device.

    `seed` and `first_row` hold one int64 each; None means 0.
    """
    n = _indices_from(first_row, rows, seed.device)[:, None]
    group = torch.arange((columns + 15) // 16, device=seed.device)[None, :]
    words = _philox(_key(seed, n, first_row), group, n & MASK32, torch.zeros_like(n), ROW_DOMAIN)
    # Columns take the bytes of a word in order, from the lowest on (words are little-endian).
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
    # The calls have shape (c, r, batch * heads, I, J). Short dimensions come first, which is fast on a CPU.
    four = torch.arange(4, device=device)
    column = 4 * torch.arange(tiles_j, device=device) + four.view(4, 1, 1, 1, 1)
    row = 4 * torch.arange(tiles_i, device=device)[:, None] + four.view(4, 1, 1, 1)
    first_head = None if first_sequence is None else first_sequence * heads
    head = _indices_from(first_head, batch * heads, device).view(-1, 1, 1)
    words = _philox(_key(seed, head, first_sequence), column, row, head & MASK32, ATTENTION_DOMAIN)
    bits = _planes_below(words, keep)
    # With i2, i1, j2, j1 in {0, 1}, bit 8*i2 + 4*i1 + 2*j2 + j1 of call (I, r, J, c) is the element in row
    # 16I + 8*i2 + 2r + i1 and column 16J + 8*j2 + 2c + j1. So two bits (j1) of each of the four calls c make an octet,
    # 8 neighbouring columns of a row. The octets have shape (i2, i1, j2, r, batch * heads, I, J).
    pairs = torch.arange(0, 16, 2, device=device, dtype=torch.int32).view(8, 1, 1, 1, 1)
    octets = sum((bits[c] >> pairs & 3) << 2 * c for c in range(4)).long()
    octets = octets.view(2, 2, 2, 4, batch * heads, tiles_i, tiles_j).permute(4, 5, 0, 3, 1, 6, 2)
    # Each octet is copied into 8 bytes, and byte n keeps only bit n.
    kept = (octets * 0x0101010101010101 & BIT_N_OF_BYTE_N).contiguous().view(torch.uint8) != 0
    return kept.view(batch, heads, 16 * tiles_i, 16 * tiles_j)[:, :, :queries, :keys]


def _indices_from(first: Tensor | None, count: int, device: torch.device) -> Tensor:
    """Returns first, first + 1, ... of shape (count,)."""
    indices = torch.arange(count, device=device)
    return indices if first is None else indices + first


def _key(seed: Tensor, indices: Tensor, first: Tensor | None) -> Tensor:
    """Returns the keys for row or head indices. Without `first` all indices are below 2^32, so the key is the seed."""
    return seed if first is None else seed ^ (indices >> 32 << 32)


def _planes_below(words: tuple[Tensor, ...], keep: int) -> Tensor:
    """Returns 16 bits per call: bit e is 1 if the 8-bit number of element e is less than `keep`.

    Planes are compared from the lowest bit up, with x a bit of the number and k the same bit of `keep`: below becomes
    (x < k) or (x == k and below), which is ~x | below for k = 1 and ~x & below for k = 0.
    """
    below = torch.zeros_like(words[0], dtype=torch.int32)
    for p in range(8):
        plane = (words[p // 2] >> (16 * (p % 2))).to(torch.int32)
        below = (~plane | below) if (keep >> p) & 1 else (~plane & below)
    return below


def _philox(key: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes Philox-4x32-7 in int64. Products of 32-bit words may overflow, but both of their halves are right."""
    k0, k1 = key & MASK32, (key >> 32) & MASK32
    for _ in range(ROUNDS):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        high0, high1 = (product0 >> 32) & MASK32, (product1 >> 32) & MASK32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, product1 & MASK32, high0 ^ c3 ^ k1, product0 & MASK32
        k0, k1 = (k0 + WEYL[0]) & MASK32, (k1 + WEYL[1]) & MASK32
    return torch.broadcast_tensors(c0, c1, c2, c3)
