"""The dropout masks of fastlm.dropout, drawn inside Triton kernels."""

import triton
import triton.language as tl

from fastlm import dropout

ROUNDS = tl.constexpr(dropout.ROUNDS)
M0, M1 = (tl.constexpr(m) for m in dropout.MULTIPLIERS)
W0, W1 = (tl.constexpr(w) for w in dropout.WEYL)
ATTENTION_DOMAIN = tl.constexpr(dropout.ATTENTION_DOMAIN)


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
def load_first(FIRST):
    """Loads the global number of a call's first row or sequence; FIRST is None for 0."""
    if FIRST is None:
        return 0
    else:
        return tl.load(FIRST)


@triton.jit
def row_mask(seed, row, first: tl.constexpr, keep, BLOCK: tl.constexpr):
    """Tells which elements of a row op are kept: bool (ROWS, BLOCK), global rows `row` (int64, (ROWS, 1)), columns from
    `first` on.

    Column c of row n has byte c % 16 of the call with counter (c // 16, n mod 2^32, 0, 0). Each word, that
    is 4 columns, names its own call, and the compiler merges those of a thread's neighbouring columns: one call for
    8 columns of fp16. Drawing each call once for all 16 instead, and handing words from lane to lane, goes
    through shared memory with two barriers and takes more instructions than it saves.
    """
    ROWS: tl.constexpr = row.shape[0]
    word = first // 4 + tl.arange(0, BLOCK // 4)[None, :]
    part, call = word % 4, (word // 4).to(tl.uint32)
    k0, k1 = seed.to(tl.uint32), ((seed ^ row) >> 32).to(tl.uint32)
    zero = tl.zeros((1, 1), tl.uint32)
    w0, w1, w2, w3 = philox(k0, k1, call, row.to(tl.uint32), zero, zero)
    words = tl.where(part < 2, tl.where(part == 0, w0, w1), tl.where(part == 2, w2, w3))
    # byte < keep, asked of the top byte of a word, where the bits below it make no difference
    to_top = (24 - 8 * tl.arange(0, 4)).to(tl.uint32)
    return (words[:, :, None] << to_top[None, None, :]).reshape(ROWS, BLOCK) < (keep.to(tl.uint32) << 24)


@triton.jit
def attention_key(SEED, FIRST_SEQUENCE, b, h, H):
    """The key and the counter's head, uint32, of attention_mask for head h of H of the call's sequence b."""
    head = (load_first(FIRST_SEQUENCE) + tl.cast(b, tl.int64)) * H + h
    return tl.load(SEED) ^ ((head >> 32) << 32), head.to(tl.uint32)


@triton.jit
def attention_mask(
    key, head, row, column, KEEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TRANSPOSED: tl.constexpr
):
    """Tells which probabilities are kept: bool (ROWS, COLUMNS) from query `row` and key `column` on, multiples of 16.

    `key` and `head` are those of attention_key. If TRANSPOSED, (COLUMNS, ROWS). The dimension
    that comes last must be a multiple of 32.

    An accumulator of mma or wgmma has, of each 16 x 16 tile, lines l and l + 8 in one thread, of each the four columns
    that share a call; lines 2r and 2r + 1, which share it too, are in two lanes of a warp. Both would draw the call, so
    of two tiles side by side the even line's lane draws the one's, the odd line's the other's, and a sum hands the bits
    over: a shuffle for 16 elements a thread. The compiler has to carry the accumulator's layout back to here for that.
    """
    # A tile's lines and columns as axes: LINES / 16, 2, 4, 2 and ACROSS / 32, 2, 2, 4, 2; bits 8, 4, 2, 1 of a call's
    # 16 are those of the axes of 2, the row's before the column's, and bit 16 is the second of the two tiles.
    LINES: tl.constexpr = COLUMNS if TRANSPOSED else ROWS
    ACROSS: tl.constexpr = ROWS if TRANSPOSED else COLUMNS
    line, across = tl.arange(0, LINES // 4), tl.arange(0, ACROSS // 4).reshape(ACROSS // 32, 2, 4).permute(1, 0, 2)
    line = line.reshape(LINES // 16, 1, 4, 1, 1, 1, 1, 1, 1).to(tl.uint32)
    across = across.reshape(1, 1, 1, 2, ACROSS // 32, 1, 1, 4, 1).to(tl.uint32)
    row, column = tl.cast(row // 4, tl.uint32), tl.cast(column // 4, tl.uint32)
    k0, k1 = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    domain = tl.full((1,), ATTENTION_DOMAIN, tl.uint32).reshape(1, 1, 1, 1, 1, 1, 1, 1, 1)
    if TRANSPOSED:
        words = philox(k0, k1, column + line, row + across, head, domain)
    else:
        words = philox(k0, k1, column + across, row + line, head, domain)

    two = tl.arange(0, 2).to(tl.uint32)
    line_8, line_1 = two.reshape(1, 2, 1, 1, 1, 1, 1, 1, 1), two.reshape(1, 1, 1, 2, 1, 1, 1, 1, 1)
    across_8, across_1 = two.reshape(1, 1, 1, 1, 1, 1, 2, 1, 1), two.reshape(1, 1, 1, 1, 1, 1, 1, 1, 2)
    across_16 = two.reshape(1, 1, 1, 1, 1, 2, 1, 1, 1)
    bits = tl.sum(_planes_below(words, KEEP) << (16 * line_1), axis=3, keep_dims=True)
    # What differs by lane is shifted away; the rest is a constant in each register, so that one R2P tests two.
    if TRANSPOSED:
        bits = bits >> line_1
        bit = 16 * across_16 + 8 * across_8 + 4 * across_1 + 2 * line_8
    else:
        bits = bits >> (4 * line_1)
        bit = 16 * across_16 + 8 * line_8 + 2 * across_8 + across_1
    return ((bits & (tl.full(bit.shape, 1, tl.uint32) << bit)) != 0).reshape(LINES, ACROSS)


@triton.jit
def _planes_below(words, KEEP: tl.constexpr):
    """16 bits: is the 8-bit number that is spread over the eight 16-bit planes below KEEP?

    From the lowest plane up, below = (x < k) or (x == k and below); KEEP is known, so two planes are one LOP3.
    """
    below = tl.zeros_like(words[0])
    for p in tl.static_range(8):
        plane = (words[p // 2] >> (16 * (p % 2))) ^ 0xFFFFFFFF
        below = plane | below if (KEEP >> p) & 1 else plane & below
    return below & 0xFFFF
