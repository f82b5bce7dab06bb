"""Draws the dropout masks of fastlm.dropout inside Triton kernels."""

import triton
import triton.language as tl

from fastlm import dropout

ROUNDS = tl.constexpr(dropout.ROUNDS)
M0, M1 = (tl.constexpr(m) for m in dropout.MULTIPLIERS)
W0, W1 = (tl.constexpr(w) for w in dropout.WEYL)
ATTENTION_DOMAIN = tl.constexpr(dropout.ATTENTION_DOMAIN)


@triton.jit
def philox(k0, k1, c0, c1, c2, c3):
    """Computes Philox-4x32-7 of uint32 keys and counters that broadcast against each other.

    A 64-bit product is one instruction, IMAD.WIDE. tl.philox computes the two halves of a product with one instruction
    each.
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
    """Loads the global index of a call's first row or sequence. FIRST = None means 0."""
    if FIRST is None:
        return 0
    else:
        return tl.load(FIRST)


@triton.jit
def row_mask(seed, row, first: tl.constexpr, keep, BLOCK: tl.constexpr):
    """Returns the keep mask of a row op: bool (ROWS, BLOCK) for global rows `row` (int64, (ROWS, 1)) and columns
    first ... first + BLOCK - 1.

    A Philox call covers 16 columns, and each of its four words covers 4. The code computes one call per word, but the
    compiler merges the equal calls of one thread, so a thread makes one call for 8 columns of fp16. To make each call
    in only one lane, lanes would have to exchange words through shared memory. This takes two barriers and more
    instructions than it saves.
    """
    ROWS: tl.constexpr = row.shape[0]
    word = first // 4 + tl.arange(0, BLOCK // 4)[None, :]
    word_in_call, call = word % 4, (word // 4).to(tl.uint32)
    k0, k1 = seed.to(tl.uint32), ((seed ^ row) >> 32).to(tl.uint32)
    zero = tl.zeros((1, 1), tl.uint32)
    w0, w1, w2, w3 = philox(k0, k1, call, row.to(tl.uint32), zero, zero)
    words = tl.where(word_in_call < 2, tl.where(word_in_call == 0, w0, w1), tl.where(word_in_call == 2, w2, w3))
    # The comparison byte < keep is made with the byte shifted to the top of the word, where the bits below it do not
    # change the result.
    to_top = (24 - 8 * tl.arange(0, 4)).to(tl.uint32)
    return (words[:, :, None] << to_top[None, None, :]).reshape(ROWS, BLOCK) < (keep.to(tl.uint32) << 24)


@triton.jit
def attention_key(SEED, FIRST_SEQUENCE, b, h, H):
    """Returns key (int64) and head (uint32) for attention_mask, of head h of H and of sequence b of the call."""
    head = (load_first(FIRST_SEQUENCE) + tl.cast(b, tl.int64)) * H + h
    return tl.load(SEED) ^ ((head >> 32) << 32), head.to(tl.uint32)


@triton.jit
def attention_mask(
    key, head, row, column, KEEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TRANSPOSED: tl.constexpr
):
    """Returns the keep mask of attention probabilities: bool (ROWS, COLUMNS), or (COLUMNS, ROWS) if TRANSPOSED.

    It begins at query `row` and key `column`, multiples of 16. `key` and `head` come from attention_key. The last
    dimension of the mask must be a multiple of 32.

    An accumulator row is a query, or a key if TRANSPOSED. This picture shows the lane that holds each element of a
    16 x 16 tile of an mma or wgmma accumulator:

     acc_column   0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15
     acc_row
            0     0  0  1  1  2  2  3  3  0  0  1  1  2  2  3  3
            1     4  4  5  5  6  6  7  7  4  4  5  5  6  6  7  7
            2     8  8  9  9 10 10 11 11  8  8  9  9 10 10 11 11
            3    12 12 13 13 14 14 15 15 12 12 13 13 14 14 15 15
            4    16 16 17 17 18 18 19 19 16 16 17 17 18 18 19 19
            5    20 20 21 21 22 22 23 23 20 20 21 21 22 22 23 23
            6    24 24 25 25 26 26 27 27 24 24 25 25 26 26 27 27
            7    28 28 29 29 30 30 31 31 28 28 29 29 30 30 31 31
            8     0  0  1  1  2  2  3  3  0  0  1  1  2  2  3  3
            9     4  4  5  5  6  6  7  7  4  4  5  5  6  6  7  7
           10     8  8  9  9 10 10 11 11  8  8  9  9 10 10 11 11
           11    12 12 13 13 14 14 15 15 12 12 13 13 14 14 15 15
           12    16 16 17 17 18 18 19 19 16 16 17 17 18 18 19 19
           13    20 20 21 21 22 22 23 23 20 20 21 21 22 22 23 23
           14    24 24 25 25 26 26 27 27 24 24 25 25 26 26 27 27
           15    28 28 29 29 30 30 31 31 28 28 29 29 30 30 31 31

    A Philox call (r, c) serves accumulator rows {2r, 2r + 1, 2r + 8, 2r + 9} of a tile (fastlm.dropout), so its
    elements are in two lanes, 8r + c and 8r + 4 + c. Both lanes would compute the call. Instead, they share the work of
    two tiles that are neighbours in the same rows: the lane of the even rows computes the call of the first tile, the
    lane of the odd rows that of the second tile. A sum over the two lanes then gives both results to both: one shuffle
    per 16 elements of a thread. This needs the compiler to carry the layout of the accumulator back to this function.
    """
    # The two dimensions of the mask, accumulator rows and columns, are split into axes, in this order:
    #     rows       ACC_ROWS / 16       row_8: 2       r: 4          row_1: 2
    #     columns    ACC_COLUMNS / 32    column_16: 2   column_8: 2   c: 4       column_1: 2
    # row_8 and column_8 add 8 to an index, row_1 and column_1 add 1, column_16 selects the tile.
    ACC_ROWS: tl.constexpr = COLUMNS if TRANSPOSED else ROWS
    ACC_COLUMNS: tl.constexpr = ROWS if TRANSPOSED else COLUMNS
    acc_row = tl.arange(0, ACC_ROWS // 4).reshape(ACC_ROWS // 16, 1, 4, 1, 1, 1, 1, 1, 1).to(tl.uint32)
    acc_column = tl.arange(0, ACC_COLUMNS // 4).reshape(ACC_COLUMNS // 32, 2, 4).permute(1, 0, 2)
    acc_column = acc_column.reshape(1, 1, 1, 2, ACC_COLUMNS // 32, 1, 1, 4, 1).to(tl.uint32)
    row, column = tl.cast(row // 4, tl.uint32), tl.cast(column // 4, tl.uint32)
    k0, k1 = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    domain = tl.full((1,), ATTENTION_DOMAIN, tl.uint32).reshape(1, 1, 1, 1, 1, 1, 1, 1, 1)
    if TRANSPOSED:
        words = philox(k0, k1, column + acc_row, row + acc_column, head, domain)
    else:
        words = philox(k0, k1, column + acc_column, row + acc_row, head, domain)

    two = tl.arange(0, 2).to(tl.uint32)
    row_8, row_1 = two.reshape(1, 2, 1, 1, 1, 1, 1, 1, 1), two.reshape(1, 1, 1, 2, 1, 1, 1, 1, 1)
    column_8, column_1 = two.reshape(1, 1, 1, 1, 1, 1, 2, 1, 1), two.reshape(1, 1, 1, 1, 1, 1, 1, 1, 2)
    column_16 = two.reshape(1, 1, 1, 1, 1, 2, 1, 1, 1)
    bits = tl.sum(_planes_below(words, KEEP) << (16 * row_1), axis=3, keep_dims=True)
    # The shift removes the part of the bit index that depends on the lane. The rest is a constant per register, so the
    # compiler can test two bits with one R2P.
    if TRANSPOSED:
        bits = bits >> row_1
        bit = 16 * column_16 + 8 * column_8 + 4 * column_1 + 2 * row_8
    else:
        bits = bits >> (4 * row_1)
        bit = 16 * column_16 + 8 * row_8 + 2 * column_8 + column_1
    return ((bits & (tl.full(bit.shape, 1, tl.uint32) << bit)) != 0).reshape(ACC_ROWS, ACC_COLUMNS)


@triton.jit
def _planes_below(words, KEEP: tl.constexpr):
    """Returns 16 bits: bit e is 1 if the 8-bit number of element e is less than KEEP (see fastlm.dropout).

    Bit planes are compared from the lowest up: below = (x < k) or (x == k and below). KEEP is a constant, so two planes
    take one LOP3.
    """
    below = tl.zeros_like(words[0])
    for p in tl.static_range(8):
        plane = (words[p // 2] >> (16 * (p % 2))) ^ 0xFFFFFFFF
        below = plane | below if (KEEP >> p) & 1 else plane & below
    return below & 0xFFFF
