"""The dropout masks of fastlm.dropout, drawn inside Triton kernels."""

import triton
import triton.language as tl

from fastlm import dropout

ROUNDS = tl.constexpr(dropout.ROUNDS)
M0, M1 = (tl.constexpr(m) for m in dropout.MULTIPLIERS)
W0, W1 = (tl.constexpr(w) for w in dropout.WEYL)


@triton.jit
def philox(k0, k1, c0, c1, c2, c3):
    """Philox-4x32-7 of uint32 keys and counters that broadcast against each other.

    A product is taken whole, which is one IMAD.WIDE; tl.philox takes its halves apart, which is two instructions.
    """
    for _ in tl.static_range(ROUNDS):
        product0, product1 = c0.to(tl.uint64) * M0, c2.to(tl.uint64) * M1
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = product1.to(tl.uint32), product0.to(tl.uint32)
        k0 = tl.add(k0, W0, sanitize_overflow=False)
        k1 = tl.add(k1, W1, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def row_mask(seed, row, first: tl.constexpr, keep, BLOCK: tl.constexpr):
    """Which elements of a row op are kept: bool (ROWS, BLOCK), rows `row` (int64, (ROWS, 1)), columns from `first` on.

    Column c of row n has byte c % 16 of the call with counter (c // 16, n mod 2^32, n div 2^32, 0). Each word, that
    is 4 columns, names its own call, and the compiler merges those of a thread's neighbouring columns: one call for
    8 columns of fp16. Drawing each call once for all 16 instead, and handing words from lane to lane, goes
    through shared memory with two barriers and takes more instructions than it saves.
    """
    ROWS: tl.constexpr = row.shape[0]
    word = first // 4 + tl.arange(0, BLOCK // 4)[None, :]
    part, call = word % 4, (word // 4).to(tl.uint32)
    low, high = row.to(tl.uint32), (row >> 32).to(tl.uint32)
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    w0, w1, w2, w3 = philox(k0, k1, call, low, high, tl.zeros((1, 1), tl.uint32))
    words = tl.where(part < 2, tl.where(part == 0, w0, w1), tl.where(part == 2, w2, w3))
    # byte < keep, asked of the top byte of a word, where the bits below it make no difference
    to_top = (24 - 8 * tl.arange(0, 4)).to(tl.uint32)
    return (words[:, :, None] << to_top[None, None, :]).reshape(ROWS, BLOCK) < (keep.to(tl.uint32) << 24)
