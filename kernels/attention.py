"""Attention with dropout inside, forward and backward (Dao et al. 2022; the backward without atomics).

For x = B S H D elements of b bytes the forward reads q, k, v and writes o, 4bx, if the L2 holds a head's keys and
values, in two products, 4 S x operations, half of them if causal. The backward of sequences of up to 128 is one kernel,
which reads do, q, k, v, o and writes dq, dk, dv, 8bx, in five products, 10 S x. Longer ones take two, by queries and by
keys, 12bx and 14 S x: the price of gradients that repeat bit for bit and of no dq in float32. What an H100 takes
for 65536 tokens, 12 heads of 64 in bf16, in us, computed at 790 TFLOP/s and 3.0 TB/s, not measured:

    S                                128    512    512 causal    1024
    forward     memory               134    134    134           134
                products              33    130     65           261
    backward    memory               268    403    403           403    (8bx, the floor: 268)
                products              82    457    228           913    (10 S x, the floor: 326, 163, 652)

Instructions come on top: one a score is 14 us at S = 512 and 1.7 GHz. Counted in the machine code for sm_90, D = 64,
bf16, in tiles that need no masking, without and with dropout: forward 8.2 and 13.1 (of short sequences 9.7 and 15.0),
dq 8.1 and 12.4, dkv 9.9 and 14.7, all gradients of short sequences 12.9 and 20.4.

Rows come by pointers, not by TMA descriptors: these put zeros past the end of a tensor, not of a sequence. What stands
in padding, NaN perhaps, would be read as keys and values, and a packed sequence's last tile be stored over the next
one's rows. Triton (3.7) specialises warps for Blackwell alone, and in loops of a product.

Programs past a sequence's end return at once. The others go through one tile or more and say so (tl.assume), for a path
around the loop would make ptxas serialise all wgmmas. For the same reason tiles that need masking are not a second
loop, but a branch in the one.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlm.kernels import autotune
from fastlm.kernels.philox import attention_key, attention_mask

LOG2E, LN2 = tl.constexpr(1 / math.log(2.0)), tl.constexpr(math.log(2.0))

# Through these pointers nothing is loaded 16 bytes at a time: how they are aligned, which changes with the number of
# tokens, is no reason to compile a kernel again.
UNALIGNED = ["LENGTHS", "CU_SEQLENS", "SEED", "FIRST_SEQUENCE", "LSE", "LSE2", "DELTA"]


@triton.jit
def _clamp(x, most):
    return tl.maximum(0, tl.minimum(x, most))


@triton.jit
def _place(S, T, LENGTHS, CU_SEQLENS):
    """A program's head h, block of rows, sequence b; the packed row where the sequence starts, its length, its rows.

    No host looks at lengths and offsets on a GPU: what is out of range is taken as the nearest that is not.
    """
    h, block, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start, length, rows = 0, S, S
    if CU_SEQLENS is not None:
        start = _clamp(tl.load(CU_SEQLENS + b), T)
        length = _clamp(_clamp(tl.load(CU_SEQLENS + b + 1), T) - start, S)
        rows = length
    if LENGTHS is not None:
        length = _clamp(tl.load(LENGTHS + b), S)
    return h, block, b, start, length, rows


@triton.jit
def _at_head(X, strides, b, h, start):
    """X at the first row of a sequence and head; strides of the batch (0 for packed rows), of rows and of heads."""
    X += tl.cast(b, tl.int64) * strides[0] + tl.cast(start, tl.int64) * strides[1]
    return X + tl.cast(h, tl.int64) * strides[2]


@triton.jit
def _at_numbers(X, first, b, h, start, S, CU_SEQLENS, ROWS: tl.constexpr):
    """Of X, which is (B, H, S), or (T, H) for packed rows, the numbers of a head's rows from `first` on."""
    H = tl.num_programs(0)
    row = tl.arange(0, ROWS)
    if CU_SEQLENS is None:
        return X + (tl.cast(b, tl.int64) * H + h) * S + first + row
    else:
        return X + (tl.cast(start, tl.int64) + first) * H + h + row * H


@triton.jit
def _load_numbers(X, first, end, b, h, start, S, CU_SEQLENS, ROWS: tl.constexpr):
    at = _at_numbers(X, first, b, h, start, S, CU_SEQLENS, ROWS)
    return tl.load(at, mask=tl.arange(0, ROWS) < end - first, other=0.0)


@triton.jit
def _store_numbers(X, x, first, end, b, h, start, S, CU_SEQLENS):
    at = _at_numbers(X, first, b, h, start, S, CU_SEQLENS, x.shape[0])
    tl.store(at, x, mask=tl.arange(0, x.shape[0]) < end - first)


@triton.jit
def _row(ROWS: tl.constexpr, STRIDE: tl.constexpr):
    """(ROWS, 1), in 64 bits where the batch stands between rows and their offsets are too large for 32."""
    row = tl.arange(0, ROWS)[:, None]
    return row.to(tl.int64) if ROWS * STRIDE >= 2**31 else row


@triton.jit
def _load_rows(X, first, end, strides, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(ROWS, BLOCK_D) of the head at X, from row `first` on, with zeros from row `end` and column D on."""
    row, d = _row(ROWS, strides[1]), tl.arange(0, BLOCK_D)[None, :]
    at = X + tl.cast(first, tl.int64) * strides[1] + (row * strides[1] + d)
    return tl.load(at, mask=(row < end - first) & (d < D), other=0.0)


@triton.jit
def _store_rows(X, x, first, end, strides, D: tl.constexpr):
    row, d = _row(x.shape[0], strides[1]), tl.arange(0, x.shape[1])[None, :]
    at = X + tl.cast(first, tl.int64) * strides[1] + (row * strides[1] + d)
    tl.store(at, x.to(X.dtype.element_ty), mask=(row < end - first) & (d < D))


@triton.jit
def _seen(i, j, length, CAUSAL: tl.constexpr):
    """Whether query i < length sees key j. What queries from `length` on see is of no consequence: do is zero there."""
    return j <= i if CAUSAL else j < length


@triton.jit
def _kept(
    key, head, first_query, first_key,
    KEEP: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """What dropout multiplies probabilities with: 256 / KEEP or 0.

    LLVM would move a selection past the rounding to 16 bits, where it takes pairs apart; a factor stays where it is.
    """
    if KEEP == 256:
        return 1.0
    else:
        mask = attention_mask(key, head, first_query, first_key, KEEP, QUERIES, KEYS, TRANSPOSED)
        return tl.where(mask, 256 / KEEP, 0.0)


@triton.jit(do_not_specialize=["S", "T"], do_not_specialize_on_alignment=UNALIGNED)
def _forward(
    Q, K, V, LENGTHS, CU_SEQLENS, SEED, FIRST_SEQUENCE, OUT, LSE, q_strides, k_strides, v_strides, o_strides, S, T,
    scale,
    KEEP: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK_ALL: tl.constexpr,
):  # fmt: skip
    h, block, b, start, length, rows = _place(S, T, LENGTHS, CU_SEQLENS)
    first = (tl.num_programs(1) - 1 - block if CAUSAL else block) * BLOCK_M  # of causal blocks, the long ones begin
    K, V = _at_head(K, k_strides, b, h, start), _at_head(V, v_strides, b, h, start)
    i, j = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    if first >= length:
        zeros = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        _store_rows(_at_head(OUT, o_strides, b, h, start), zeros, first, rows, o_strides, D)
        _store_numbers(LSE, tl.full((BLOCK_M,), float("inf"), tl.float32), first, rows, b, h, start, S, CU_SEQLENS)
        return
    q = _load_rows(_at_head(Q, q_strides, b, h, start), first, length, q_strides, BLOCK_M, D, BLOCK_D)
    key, head = None, None
    if KEEP < 256:
        key, head = attention_key(SEED, FIRST_SEQUENCE, b, h, tl.num_programs(0))

    # Keys [0, whole) are seen by every query of the block, keys [whole, end) by some.
    end = tl.minimum(first + BLOCK_M, length) if CAUSAL else length
    tl.assume(end > 0)
    whole = (first if CAUSAL else end) // BLOCK_N * BLOCK_N
    top = tl.full((BLOCK_M,), -float("inf"), tl.float32)  # a row's largest score so far, times scale * log2(e)
    total = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for n in tl.range(0, end, BLOCK_N, num_stages=2):
        k = _load_rows(K, n, length, k_strides, BLOCK_N, D, BLOCK_D)
        v = _load_rows(V, n, length, v_strides, BLOCK_N, D, BLOCK_D)
        s = tl.dot(q, k.T, input_precision=PRECISION)
        if MASK_ALL or n >= whole:
            s = tl.where(_seen(first + i[:, None], n + j[None, :], length, CAUSAL), s, -float("inf"))
        new_top = tl.maximum(top, tl.max(s, axis=1) * (scale * LOG2E))
        p = tl.exp2(s * (scale * LOG2E) - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, axis=1)
        z = _kept(key, head, first, n, KEEP, BLOCK_M, BLOCK_N, False)
        o = tl.dot((p * z).to(v.dtype), v, o * shrink[:, None], input_precision=PRECISION)
        top = new_top

    valid = first + i < length
    o = tl.where(valid[:, None], o / total[:, None], 0.0)
    _store_rows(_at_head(OUT, o_strides, b, h, start), o, first, rows, o_strides, D)
    lse = tl.where(valid, (top + tl.log2(total)) * LN2, float("inf"))
    _store_numbers(LSE, lse, first, rows, b, h, start, S, CU_SEQLENS)


@triton.jit(do_not_specialize=["S", "T"], do_not_specialize_on_alignment=UNALIGNED)
def _backward_dq(
    DO, Q, K, V, OUT, LSE, LENGTHS, CU_SEQLENS, SEED, FIRST_SEQUENCE, DQ, DK, DV, LSE2, DELTA, q_strides, k_strides,
    v_strides, o_strides, dq_strides, S, T, scale,
    KEEP: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK_ALL: tl.constexpr,
    ALONE: tl.constexpr,
):  # fmt: skip
    """dq of a block of queries; dk and dv too if it is ALONE in its sequence, else LSE2 and DELTA for _backward_dkv."""
    h, block, b, start, length, rows = _place(S, T, LENGTHS, CU_SEQLENS)
    first = (tl.num_programs(1) - 1 - block if CAUSAL else block) * BLOCK_M
    i, j = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    K, V = _at_head(K, k_strides, b, h, start), _at_head(V, v_strides, b, h, start)
    if first >= (rows if ALONE else length):
        zeros = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        _store_rows(_at_head(DQ, dq_strides, b, h, start), zeros, first, rows, dq_strides, D)
        return
    DK, DV = _at_head(DK, dq_strides, b, h, start), _at_head(DV, dq_strides, b, h, start)
    q = _load_rows(_at_head(Q, q_strides, b, h, start), first, length, q_strides, BLOCK_M, D, BLOCK_D)
    do = _load_rows(_at_head(DO, o_strides, b, h, start), first, length, o_strides, BLOCK_M, D, BLOCK_D)
    o = _load_rows(_at_head(OUT, o_strides, b, h, start), first, length, o_strides, BLOCK_M, D, BLOCK_D)
    lse2 = _load_numbers(LSE, first, length, b, h, start, S, CU_SEQLENS, BLOCK_M) * LOG2E
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), axis=1)
    if not ALONE:
        _store_numbers(LSE2, lse2, first, length, b, h, start, S, CU_SEQLENS)
        _store_numbers(DELTA, delta, first, length, b, h, start, S, CU_SEQLENS)
    key, head = None, None
    if KEEP < 256:
        key, head = attention_key(SEED, FIRST_SEQUENCE, b, h, tl.num_programs(0))

    end = tl.minimum(first + BLOCK_M, length) if CAUSAL else length
    whole = (first if CAUSAL else end) // BLOCK_N * BLOCK_N
    if ALONE:
        end = rows  # keys from `length` on have gradients of zero, to be stored
    tl.assume(end > 0)
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for n in tl.range(0, end, BLOCK_N, num_stages=2):
        k = _load_rows(K, n, length, k_strides, BLOCK_N, D, BLOCK_D)
        v = _load_rows(V, n, length, v_strides, BLOCK_N, D, BLOCK_D)
        p = tl.exp2(tl.dot(q, k.T, input_precision=PRECISION) * (scale * LOG2E) - lse2[:, None])
        if MASK_ALL or n >= whole:
            p = tl.where(_seen(first + i[:, None], n + j[None, :], length, CAUSAL), p, 0.0)
        z = _kept(key, head, first, n, KEEP, BLOCK_M, BLOCK_N, False)
        if ALONE:
            dv = tl.dot((p * z).to(do.dtype).T, do, input_precision=PRECISION)
            _store_rows(DV, dv, n, rows, dq_strides, D)
        dp = tl.dot(do, v.T, input_precision=PRECISION)
        ds = (p * (dp * z - delta[:, None])).to(k.dtype)
        dq = tl.dot(ds, k, dq, input_precision=PRECISION)
        if ALONE:
            dk = tl.dot(ds.T, q, input_precision=PRECISION)
            _store_rows(DK, dk * scale, n, rows, dq_strides, D)

    _store_rows(_at_head(DQ, dq_strides, b, h, start), dq * scale, first, rows, dq_strides, D)


@triton.jit(do_not_specialize=["S", "T"], do_not_specialize_on_alignment=UNALIGNED)
def _backward_dkv(
    DO, Q, K, V, LENGTHS, CU_SEQLENS, SEED, FIRST_SEQUENCE, DK, DV, LSE2, DELTA, q_strides, k_strides, v_strides,
    o_strides, dk_strides, S, T, scale,
    KEEP: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK_ALL: tl.constexpr,
):  # fmt: skip
    """dk and dv of a block of keys, by the scores' transpose: keys by queries."""
    h, block, b, start, length, rows = _place(S, T, LENGTHS, CU_SEQLENS)
    first = block * BLOCK_N
    i, j = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    Q, DO = _at_head(Q, q_strides, b, h, start), _at_head(DO, o_strides, b, h, start)
    DK, DV = _at_head(DK, dk_strides, b, h, start), _at_head(DV, dk_strides, b, h, start)
    if first >= length:
        _store_rows(DK, tl.zeros((BLOCK_N, BLOCK_D), tl.float32), first, rows, dk_strides, D)
        _store_rows(DV, tl.zeros((BLOCK_N, BLOCK_D), tl.float32), first, rows, dk_strides, D)
        return
    k = _load_rows(_at_head(K, k_strides, b, h, start), first, length, k_strides, BLOCK_N, D, BLOCK_D)
    v = _load_rows(_at_head(V, v_strides, b, h, start), first, length, v_strides, BLOCK_N, D, BLOCK_D)
    key, head = None, None
    if KEEP < 256:
        key, head = attention_key(SEED, FIRST_SEQUENCE, b, h, tl.num_programs(0))

    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    low = first // BLOCK_M * BLOCK_M if CAUSAL else 0
    tl.assume(low < length)
    for m in tl.range(low, length, BLOCK_M, num_stages=2):
        # Rows from `length` on are loaded as zeros, and add zeros to dk and dv.
        q = _load_rows(Q, m, length, q_strides, BLOCK_M, D, BLOCK_D)
        do = _load_rows(DO, m, length, o_strides, BLOCK_M, D, BLOCK_D)
        lse2 = _load_numbers(LSE2, m, length, b, h, start, S, CU_SEQLENS, BLOCK_M)
        delta = _load_numbers(DELTA, m, length, b, h, start, S, CU_SEQLENS, BLOCK_M)
        p = tl.exp2(tl.dot(k, q.T, input_precision=PRECISION) * (scale * LOG2E) - lse2[None, :])
        if CAUSAL and (MASK_ALL or m < first + BLOCK_N):
            p = tl.where(m + i[None, :] >= first + j[:, None], p, 0.0)
        z = _kept(key, head, m, first, KEEP, BLOCK_M, BLOCK_N, True)
        dv = tl.dot((p * z).to(do.dtype), do, dv, input_precision=PRECISION)
        dp = tl.dot(v, do.T, input_precision=PRECISION)
        ds = p * (dp * z - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)

    valid = first + j[:, None] < length
    _store_rows(DK, tl.where(valid, dk * scale, 0.0), first, rows, dk_strides, D)
    _store_rows(DV, tl.where(valid, dv, 0.0), first, rows, dk_strides, D)


# What a chip multiplies with: wgmma (compute capability 9), tcgen05 (10), mma.sync (the others), FMAs for float32.
WGMMA, TCGEN05, MMA, FMA = range(4)

# BLOCK_M, BLOCK_N and warps for each of these, for heads of up to 64 and of up to 128. None is measured: each is the
# largest whose accumulators the compiler keeps in registers. Rows matter most: for 128 x 64 scores a program asks 16 KB
# of the L2, at 13 instructions a score 20 bytes a cycle and multiprocessor, where an H100's L2 gives about 25; of 64
# rows it would ask 40. The forward's 4 warps let two programs share a multiprocessor of a Hopper chip, one at its
# exponentials while the other's products are under way.
TILES = {
    ("_forward", 64): ((128, 64, 4), (128, 64, 8), (128, 64, 8), (64, 32, 8)),
    ("_forward", 128): ((128, 64, 8), (128, 64, 8), (128, 64, 8), (32, 32, 8)),
    ("_backward_dq", 64): ((128, 64, 8), (128, 64, 8), (128, 64, 8), (64, 32, 8)),
    ("_backward_dq", 128): ((128, 64, 8), (128, 64, 8), (128, 32, 8), (32, 32, 4)),
    ("_backward_dkv", 64): ((64, 128, 8), (64, 128, 8), (32, 128, 8), (32, 64, 8)),
    ("_backward_dkv", 128): ((32, 128, 8), (64, 128, 8), (64, 64, 8), (32, 32, 8)),
}

# With wgmma, which takes operands from shared memory, there are registers for all gradients of a sequence this short
# in one program. Its forward waits for memory more than for L2: half the rows make four programs a multiprocessor.
SHORT, SHORT_FORWARD = 128, (64, 64, 4)


def _units(q: Tensor) -> int:
    if q.dtype == torch.float32:
        return FMA
    major = 9 if q.device.type == "cpu" else torch.cuda.get_device_capability()[0]  # on a CPU: interpreted
    return {9: WGMMA, 10: TCGEN05}.get(major, MMA)


def _short(q: Tensor, max_seqlen: int) -> bool:
    return max_seqlen <= SHORT and q.shape[-1] <= 64 and _units(q) == WGMMA


# What FASTLM_AUTOTUNE=1 tries beside these, where they fit the chip: see autotune.py.
OTHERS = tuple((m, n, warps) for m in (64, 128) for n in (32, 64, 128) for warps in (4, 8))


def _tile(units: int, block_m: int, block_n: int, warps: int) -> autotune.Tile:
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        # A branch spares tiles the masking that they do not need, but hides from the compiler that one mma.sync's
        # result is the next one's operand: it would split rows between warps, which trade them in shared memory.
        "MASK_ALL": units == MMA,
        "num_warps": warps,
    }


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int,
    seed: Tensor | None,
    first_sequence: Tensor | None,
    o: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
    keep: int,
) -> None:
    """o (B, S, H, D) = dropout(softmax(scale * q k^T + mask)) v, lse (B, H, S); or packed rows (T, H, D) and (T, H)."""
    _launch(
        _forward, "BLOCK_M", q, cu_seqlens, max_seqlen,
        (q, k, v, lengths, cu_seqlens, seed, first_sequence, o, lse), (q, k, v, o),
        keep=keep, causal=causal, scale=scale,
    )  # fmt: skip


def attention_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int,
    seed: Tensor | None,
    first_sequence: Tensor | None,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    scratch: Tensor,
    causal: bool,
    scale: float,
    keep: int,
) -> None:
    """dq, dk, dv of q's shape, with strides in common, as do and o have; scratch is (2, *lse.shape) fp32."""
    common = dict(keep=keep, causal=causal, scale=scale)
    alone = _short(q, max_seqlen)
    _launch(
        _backward_dq, "BLOCK_M", q, cu_seqlens, max_seqlen,
        (do, q, k, v, o, lse, lengths, cu_seqlens, seed, first_sequence, dq, dk, dv, *scratch), (q, k, v, o, dq),
        ALONE=alone, **common,
    )  # fmt: skip
    if not alone:
        _launch(
            _backward_dkv, "BLOCK_N", q, cu_seqlens, max_seqlen,
            (do, q, k, v, lengths, cu_seqlens, seed, first_sequence, dk, dv, *scratch), (q, k, v, o, dk), **common,
        )  # fmt: skip


def _launch(kernel, rows, q, cu_seqlens, max_seqlen, tensors, strided, keep, causal, scale, **constants) -> None:
    """A program for each block of rows, of the tile's BLOCK_M or BLOCK_N, of each head and sequence."""
    *_, heads, dim = q.shape
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if 0 in (heads, max_seqlen, sequences):
        return
    if sequences > 65535:
        raise ValueError(f"attention: the Triton kernels take at most 65535 sequences, got {sequences}")
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    strides = [_strides(x, cu_seqlens is not None) for x in strided]

    def run(tile):
        kernel[heads, triton.cdiv(max_seqlen, tile[rows]), sequences](
            *tensors, *strides, max_seqlen, q.shape[0], scale,
            KEEP=keep, CAUSAL=causal, PRECISION="tf32" if tf32 else "ieee",
            D=dim, BLOCK_D=max(16, triton.next_power_of_2(dim)), **constants, **tile,
        )  # fmt: skip

    name, units = kernel.fn.__name__, _units(q)
    alone = constants.get("ALONE", False)
    short = name == "_forward" and _short(q, max_seqlen)
    default = SHORT_FORWARD if short else TILES[name, 64 if dim <= 64 else 128][units]

    def choice():
        absent = tuple(x is None for x in tensors)
        shape_class = (f"attention.{name}", q.dtype, dim, triton.next_power_of_2(max_seqlen), absent, keep, causal)
        others = (tile for tile in OTHERS if tile[0] >= max_seqlen or not alone)
        return (*shape_class, tf32, alone), [_tile(units, *other) for other in others]

    autotune.launch(run, _tile(units, *default), choice)


def _strides(x: Tensor, packed: bool) -> tuple:
    """Strides of the batch, of rows and of heads. That of rows is a constant, which saves a pointer for each row."""
    batch, row, head, _ = (0, *x.stride()) if packed else x.stride()
    return batch, tl.constexpr(row), head
