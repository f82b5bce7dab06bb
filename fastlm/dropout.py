"""Dropout whose keep mask is a pure function of (seed, coordinates).

Every backend draws the same bits, so dropout is tested exactly, forward and backward. The bits come
from Philox-4x32 with 7 rounds (Salmon et al., SC 2011): the key is the 64-bit seed, the counter holds
the coordinates, and each call's 128 bits decide 16 elements at 8 bits each. The keep probability is
therefore keep / 256, and kept elements are scaled by exactly 256 / keep, which is unbiased.

Row ops (layer norm, embedding): element (n, c) of an (N, E) array takes byte c % 16 of the call with
counter (c // 16, n mod 2^32, n div 2^32, 0); it is kept if the byte is less than `keep`.

Attention: query i, key j of sequence b and head h. A 16 x 16 tile (I, J) = (i // 16, j // 16) takes 16
calls; call (r, c) serves rows {2r, 2r+1, 2r+8, 2r+9} and the same pattern of columns, its counter being
(4J + c, 4I + r, b * H + h, 1). The 128 bits are eight 16-bit planes, plane p being half p % 2 of word
p // 2; bit 4*ii + jj of plane p is bit p of the element's 8-bit number, which is compared with `keep`.
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


def row_mask(seed: Tensor, rows: int, columns: int, keep: int) -> Tensor:
    """Keep mask of a row op: bool of shape (rows, columns) on the seed's device."""
    n = torch.arange(rows, device=seed.device)[:, None]
    group = torch.arange((columns + 15) // 16, device=seed.device)[None, :]
    words = _philox(seed, group, n & MASK32, n >> 32, ROW_DOMAIN)
    # Little-endian words, low byte first: the order in which a row's columns take them.
    octets = torch.stack(words, dim=-1).to(torch.int32).view(torch.uint8)
    return octets.reshape(rows, 16 * group.shape[1])[:, :columns] < keep


def attention_mask(seed: Tensor, batch: int, heads: int, queries: int, keys: int, keep: int) -> Tensor:
    """Keep mask of attention probabilities: bool of shape (batch, heads, queries, keys)."""
    tiles_i, tiles_j = (queries + 15) // 16, (keys + 15) // 16
    device = seed.device
    # Calls lie as (c, r, batch * heads, I, J), short dimensions first, which is what makes this fast on a CPU.
    four = torch.arange(4, device=device)
    column = 4 * torch.arange(tiles_j, device=device) + four.view(4, 1, 1, 1, 1)
    row = 4 * torch.arange(tiles_i, device=device)[:, None] + four.view(4, 1, 1, 1)
    head = torch.arange(batch * heads, device=device).view(-1, 1, 1)
    bits = _planes_below(_philox(seed, column, row, head, ATTENTION_DOMAIN), keep)
    # Bit 8*i2 + 4*i1 + 2*j2 + j1 of call (I, r, J, c) is row 16I + 8*i2 + 2r + i1, column 16J + 8*j2 + 2c + j1:
    # the pairs of bits j1 of the four c make the octet (i2, i1, j2) of (r, batch * heads, I, J).
    pairs = torch.arange(0, 16, 2, device=device, dtype=torch.int32).view(8, 1, 1, 1, 1)
    octets = sum((bits[c] >> pairs & 3) << 2 * c for c in range(4)).long()
    octets = octets.view(2, 2, 2, 4, batch * heads, tiles_i, tiles_j).permute(4, 5, 0, 3, 1, 6, 2)
    # Eight copies of an octet, of which byte n keeps bit n.
    kept = (octets * 0x0101010101010101 & EACH_ITS_BIT).contiguous().view(torch.uint8) != 0
    return kept.view(batch, heads, 16 * tiles_i, 16 * tiles_j)[:, :, :queries, :keys]


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


def _philox(seed: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-7 in int64 arithmetic on 32-bit words; products wrap, which leaves both halves right."""
    k0, k1 = seed & MASK32, (seed >> 32) & MASK32
    c3 = torch.full_like(c0, c3)
    for _ in range(ROUNDS):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        high0, high1 = (product0 >> 32) & MASK32, (product1 >> 32) & MASK32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, product1 & MASK32, high0 ^ c3 ^ k1, product0 & MASK32
        k0, k1 = (k0 + WEYL[0]) & MASK32, (k1 + WEYL[1]) & MASK32
    return torch.broadcast_tensors(c0, c1, c2, c3)
