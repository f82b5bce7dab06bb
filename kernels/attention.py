"""Attention with dropout inside, forward and backward (FlashAttention, Dao et al. 2022; the backward has no atomics).

x = B S H D is the number of elements of q, and b is the bytes per element. A causal mask halves the flops. The bytes
assume that L2 holds a head's keys and values.

    kernels                        read              written       bytes    products    flops
    forward                        q, k, v           o               4bx           2    4 S x
    backward, S <= 128 (one)       do, q, k, v, o    dq, dk, dv      8bx           5    10 S x
    backward, longer (dq, dkv)     the same twice    dq, dk, dv     12bx           7    14 S x

The two kernels read the inputs twice and compute two products twice. In return the gradients repeat bit for bit, and
no float32 dq is accumulated in memory. Lower bounds on an H100 for 65536 tokens and 12 heads of 64 in bf16, in us, set
by HBM (3.0 TB/s) and by the products (790 TFLOP/s), computed, not measured:

    S                                        128    512    512 causal    1024
    forward                     HBM          134    134    134           134
                                products      33    130     65           261
    backward, these kernels     HBM          268    403    403           403
                                products      82    457    228           913
    backward, one kernel        HBM          268    268    268           268
    with 5 products             products      82    326    163           652

Other instructions add to this: one instruction per score takes 14 us at S = 512 and 1.7 GHz. Instructions per score,
counted in the machine code for sm_90 (D = 64, bf16, tiles of 128 x 64 that need no masking; 64 x 64 at S <= 128):

    kernel                      without dropout    with dropout
    forward, S > 128                        8.2            13.1
    forward, S <= 128                       9.7            15.0
    dq                                      8.1            12.4
    dkv                                     9.9            14.7
    backward, S <= 128                     12.9            20.4

Rows are loaded through pointers, not through TMA descriptors. A descriptor fills in zeros past the end of a tensor, but
not past the end of a sequence. It would load padding, perhaps NaN, as keys and values, and it would store the last tile
of a packed sequence over the rows of the next one. Triton 3.7 specializes warps only on Blackwell.

Programs past the end of a sequence return at once. All others run at least one iteration of the loop. tl.assume tells
the compiler so: a path around the loop would make ptxas serialize all wgmmas. For the same reason, a branch inside the
loop, not a second loop, masks the tiles that need it.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlm.kernels import autotune
from fastlm.kernels.attention_rows import (
    head_pointer,
    is_padding,
    load_row_stats,
    load_rows,
    row_stat_pointers,
    store_padding,
    store_row_stats,
    store_rows,
    work_item,
)
from fastlm.kernels.philox import attention_key, attention_mask

LOG2E, LN2 = tl.constexpr(1 / math.log(2.0)), tl.constexpr(math.log(2.0))

# No load through these pointers is 16 bytes wide. Their alignment changes with the number of tokens, so specializing on
# it would compile the same kernel again.
UNALIGNED = ["LENGTHS", "STARTS", "CU_SEQLENS", "SEED", "FIRST_SEQUENCE", "LSE", "LSE2", "DELTA"]


@triton.jit
def _is_visible(i, j, length, IS_CAUSAL: tl.constexpr):
    """Returns whether query i sees key j. For queries from `length` on any result is correct: their do is zero."""
    return j <= i if IS_CAUSAL else j < length


@triton.jit
def _dropout_factor(
    key, head, first_query, first_key,
    KEEP: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Returns the factor of each probability: 256 / KEEP if it is kept, 0 if it is dropped.

    The caller multiplies by it. A tl.where would do the same, but LLVM moves it behind the rounding to 16 bits, where
    it splits pairs of values. A multiplication stays in place.
    """
    if KEEP == 256:
        return 1.0
    else:
        mask = attention_mask(key, head, first_query, first_key, KEEP, QUERIES, KEYS, TRANSPOSED)
        return tl.where(mask, 256 / KEEP, 0.0)


@triton.jit(do_not_specialize=["S", "T"], do_not_specialize_on_alignment=UNALIGNED)
def _forward(
    Q, K, V, LENGTHS, STARTS, CU_SEQLENS, SEED, FIRST_SEQUENCE, OUT, LSE, q_strides, k_strides, v_strides, o_strides,
    S, T, scale,
    KEEP: tl.constexpr, IS_CAUSAL: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK_ALL: tl.constexpr,
):  # fmt: skip
    h, block, b, seq_start, length, num_rows = work_item(S, T, LENGTHS, STARTS, CU_SEQLENS)
    start_m = (tl.num_programs(1) - 1 - block if IS_CAUSAL else block) * BLOCK_M  # causal: longest blocks first
    K, V = head_pointer(K, k_strides, b, h, seq_start), head_pointer(V, v_strides, b, h, seq_start)
    offs_m, offs_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    if STARTS is not None:
        zeros = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        store_padding(OUT, o_strides, b, h, start_m, seq_start, length, S, zeros, D)
        lse_at = row_stat_pointers(LSE, start_m, b, h, 0, S, CU_SEQLENS, BLOCK_M)
        tl.store(lse_at, float("inf"), mask=is_padding(start_m + offs_m, seq_start, length, S))
    if start_m >= length:
        zeros = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        store_rows(head_pointer(OUT, o_strides, b, h, seq_start), zeros, start_m, num_rows, o_strides, D)
        store_row_stats(
            LSE, tl.full((BLOCK_M,), float("inf"), tl.float32), start_m, num_rows, b, h, seq_start, S, CU_SEQLENS
        )
        return
    q = load_rows(head_pointer(Q, q_strides, b, h, seq_start), start_m, length, q_strides, BLOCK_M, D, BLOCK_D)
    key, head = None, None
    if KEEP < 256:
        key, head = attention_key(SEED, FIRST_SEQUENCE, b, h, tl.num_programs(0))

    # All queries of the block see keys [0, unmasked_end); keys [unmasked_end, end) need masking.
    end = tl.minimum(start_m + BLOCK_M, length) if IS_CAUSAL else length
    tl.assume(end > 0)
    unmasked_end = (start_m if IS_CAUSAL else end) // BLOCK_N * BLOCK_N
    row_max = tl.full((BLOCK_M,), -float("inf"), tl.float32)  # of the scores times scale * log2(e)
    row_sum = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start_n in tl.range(0, end, BLOCK_N, num_stages=2):
        k = load_rows(K, start_n, length, k_strides, BLOCK_N, D, BLOCK_D)
        v = load_rows(V, start_n, length, v_strides, BLOCK_N, D, BLOCK_D)
        s = tl.dot(q, k.T, input_precision=PRECISION)
        if MASK_ALL or start_n >= unmasked_end:
            s = tl.where(
                _is_visible(start_m + offs_m[:, None], start_n + offs_n[None, :], length, IS_CAUSAL), s, -float("inf")
            )
        new_max = tl.maximum(row_max, tl.max(s, axis=1) * (scale * LOG2E))
        p = tl.exp2(s * (scale * LOG2E) - new_max[:, None])
        rescale = tl.exp2(row_max - new_max)
        row_sum = row_sum * rescale + tl.sum(p, axis=1)
        z = _dropout_factor(key, head, start_m, start_n, KEEP, BLOCK_M, BLOCK_N, False)
        o = tl.dot((p * z).to(v.dtype), v, o * rescale[:, None], input_precision=PRECISION)
        row_max = new_max

    valid = start_m + offs_m < length
    o = tl.where(valid[:, None], o / row_sum[:, None], 0.0)
    store_rows(head_pointer(OUT, o_strides, b, h, seq_start), o, start_m, num_rows, o_strides, D)
    lse = tl.where(valid, (row_max + tl.log2(row_sum)) * LN2, float("inf"))
    store_row_stats(LSE, lse, start_m, num_rows, b, h, seq_start, S, CU_SEQLENS)


@triton.jit(do_not_specialize=["S", "T"], do_not_specialize_on_alignment=UNALIGNED)
def _backward_dq(
    DO, Q, K, V, OUT, LSE, LENGTHS, STARTS, CU_SEQLENS, SEED, FIRST_SEQUENCE, DQ, DK, DV, LSE2, DELTA, q_strides,
    k_strides, v_strides, o_strides, dq_strides, S, T, scale,
    KEEP: tl.constexpr, IS_CAUSAL: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK_ALL: tl.constexpr,
    SINGLE_BLOCK: tl.constexpr,
):  # fmt: skip
    """Computes dq of a block of queries.

    SINGLE_BLOCK: the block is the whole sequence, and the kernel computes its dk and dv too. Otherwise it stores
    LSE2 = lse * log2(e) and DELTA = rowsum(do * o) for _backward_dkv.
    """
    h, block, b, seq_start, length, num_rows = work_item(S, T, LENGTHS, STARTS, CU_SEQLENS)
    start_m = (tl.num_programs(1) - 1 - block if IS_CAUSAL else block) * BLOCK_M
    offs_m, offs_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    K, V = head_pointer(K, k_strides, b, h, seq_start), head_pointer(V, v_strides, b, h, seq_start)
    if STARTS is not None:
        zeros = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        store_padding(DQ, dq_strides, b, h, start_m, seq_start, length, S, zeros, D)
        if SINGLE_BLOCK:
            store_padding(DK, dq_strides, b, h, start_m, seq_start, length, S, zeros, D)
            store_padding(DV, dq_strides, b, h, start_m, seq_start, length, S, zeros, D)
    if start_m >= (num_rows if SINGLE_BLOCK else length):
        zeros = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        store_rows(head_pointer(DQ, dq_strides, b, h, seq_start), zeros, start_m, num_rows, dq_strides, D)
        return
    DK, DV = head_pointer(DK, dq_strides, b, h, seq_start), head_pointer(DV, dq_strides, b, h, seq_start)
    q = load_rows(head_pointer(Q, q_strides, b, h, seq_start), start_m, length, q_strides, BLOCK_M, D, BLOCK_D)
    do = load_rows(head_pointer(DO, o_strides, b, h, seq_start), start_m, length, o_strides, BLOCK_M, D, BLOCK_D)
    o = load_rows(head_pointer(OUT, o_strides, b, h, seq_start), start_m, length, o_strides, BLOCK_M, D, BLOCK_D)
    lse2 = load_row_stats(LSE, start_m, length, b, h, seq_start, S, CU_SEQLENS, BLOCK_M) * LOG2E
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), axis=1)
    if not SINGLE_BLOCK:
        store_row_stats(LSE2, lse2, start_m, length, b, h, seq_start, S, CU_SEQLENS)
        store_row_stats(DELTA, delta, start_m, length, b, h, seq_start, S, CU_SEQLENS)
    key, head = None, None
    if KEEP < 256:
        key, head = attention_key(SEED, FIRST_SEQUENCE, b, h, tl.num_programs(0))

    end = tl.minimum(start_m + BLOCK_M, length) if IS_CAUSAL else length
    unmasked_end = (start_m if IS_CAUSAL else end) // BLOCK_N * BLOCK_N
    if SINGLE_BLOCK:
        end = num_rows  # keys from `length` on get gradients of zero, which must be stored
    tl.assume(end > 0)
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start_n in tl.range(0, end, BLOCK_N, num_stages=2):
        k = load_rows(K, start_n, length, k_strides, BLOCK_N, D, BLOCK_D)
        v = load_rows(V, start_n, length, v_strides, BLOCK_N, D, BLOCK_D)
        p = tl.exp2(tl.dot(q, k.T, input_precision=PRECISION) * (scale * LOG2E) - lse2[:, None])
        if MASK_ALL or start_n >= unmasked_end:
            p = tl.where(_is_visible(start_m + offs_m[:, None], start_n + offs_n[None, :], length, IS_CAUSAL), p, 0.0)
        z = _dropout_factor(key, head, start_m, start_n, KEEP, BLOCK_M, BLOCK_N, False)
        if SINGLE_BLOCK:
            dv = tl.dot((p * z).to(do.dtype).T, do, input_precision=PRECISION)
            store_rows(DV, dv, start_n, num_rows, dq_strides, D)
        dp = tl.dot(do, v.T, input_precision=PRECISION)
        ds = (p * (dp * z - delta[:, None])).to(k.dtype)
        dq = tl.dot(ds, k, dq, input_precision=PRECISION)
        if SINGLE_BLOCK:
            dk = tl.dot(ds.T, q, input_precision=PRECISION)
            store_rows(DK, dk * scale, start_n, num_rows, dq_strides, D)

    store_rows(head_pointer(DQ, dq_strides, b, h, seq_start), dq * scale, start_m, num_rows, dq_strides, D)


@triton.jit(do_not_specialize=["S", "T"], do_not_specialize_on_alignment=UNALIGNED)
def _backward_dkv(
    DO, Q, K, V, LENGTHS, STARTS, CU_SEQLENS, SEED, FIRST_SEQUENCE, DK, DV, LSE2, DELTA, q_strides, k_strides,
    v_strides, o_strides, dk_strides, S, T, scale,
    KEEP: tl.constexpr, IS_CAUSAL: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK_ALL: tl.constexpr,
):  # fmt: skip
    """Computes dk and dv of a block of keys from transposed scores, (keys, queries)."""
    h, block, b, seq_start, length, num_rows = work_item(S, T, LENGTHS, STARTS, CU_SEQLENS)
    start_n = block * BLOCK_N
    offs_m, offs_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    Q, DO = head_pointer(Q, q_strides, b, h, seq_start), head_pointer(DO, o_strides, b, h, seq_start)
    if STARTS is not None:
        zeros = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        store_padding(DK, dk_strides, b, h, start_n, seq_start, length, S, zeros, D)
        store_padding(DV, dk_strides, b, h, start_n, seq_start, length, S, zeros, D)
    DK, DV = head_pointer(DK, dk_strides, b, h, seq_start), head_pointer(DV, dk_strides, b, h, seq_start)
    if start_n >= length:
        store_rows(DK, tl.zeros((BLOCK_N, BLOCK_D), tl.float32), start_n, num_rows, dk_strides, D)
        store_rows(DV, tl.zeros((BLOCK_N, BLOCK_D), tl.float32), start_n, num_rows, dk_strides, D)
        return
    k = load_rows(head_pointer(K, k_strides, b, h, seq_start), start_n, length, k_strides, BLOCK_N, D, BLOCK_D)
    v = load_rows(head_pointer(V, v_strides, b, h, seq_start), start_n, length, v_strides, BLOCK_N, D, BLOCK_D)
    key, head = None, None
    if KEEP < 256:
        key, head = attention_key(SEED, FIRST_SEQUENCE, b, h, tl.num_programs(0))

    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    begin = start_n // BLOCK_M * BLOCK_M if IS_CAUSAL else 0
    tl.assume(begin < length)
    for start_m in tl.range(begin, length, BLOCK_M, num_stages=2):
        # Query rows from `length` on are loaded as zeros, so they add zeros to dk and dv.
        q = load_rows(Q, start_m, length, q_strides, BLOCK_M, D, BLOCK_D)
        do = load_rows(DO, start_m, length, o_strides, BLOCK_M, D, BLOCK_D)
        lse2 = load_row_stats(LSE2, start_m, length, b, h, seq_start, S, CU_SEQLENS, BLOCK_M)
        delta = load_row_stats(DELTA, start_m, length, b, h, seq_start, S, CU_SEQLENS, BLOCK_M)
        p = tl.exp2(tl.dot(k, q.T, input_precision=PRECISION) * (scale * LOG2E) - lse2[None, :])
        if IS_CAUSAL and (MASK_ALL or start_m < start_n + BLOCK_N):
            p = tl.where(start_m + offs_m[None, :] >= start_n + offs_n[:, None], p, 0.0)
        z = _dropout_factor(key, head, start_m, start_n, KEEP, BLOCK_M, BLOCK_N, True)
        dv = tl.dot((p * z).to(do.dtype), do, dv, input_precision=PRECISION)
        dp = tl.dot(v, do.T, input_precision=PRECISION)
        ds = p * (dp * z - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)

    valid = start_n + offs_n[:, None] < length
    store_rows(DK, tl.where(valid, dk * scale, 0.0), start_n, num_rows, dk_strides, D)
    store_rows(DV, tl.where(valid, dv, 0.0), start_n, num_rows, dk_strides, D)


# Matrix units: wgmma (compute capability 9), tcgen05 (10), mma.sync (all others), FMA instructions for float32.
WGMMA, TCGEN05, MMA, FMA = range(4)

# (BLOCK_M, BLOCK_N, num_warps) for each matrix unit, in the order WGMMA, TCGEN05, MMA, FMA. The 64 and 128 in the keys
# are the largest head dims.
#
# On Hopper (an H200, bf16, 12 heads of 64, 32768 tokens) 64 x 64 scores and four warps were the fastest of 12 tiles, or
# within 2 % of it, for S = 512 and 1024, causal or not, with dropout. In microseconds, beside the tile with the next
# larger accumulators, 128 x 64 (dkv: 64 x 128) and eight warps:
#
#     kernel      S = 512    causal       1024
#     forward     199 203    134 151    365 365
#     dq          242 241    166 282    415 409
#     dkv         368 430    252 311    647 751
#
# No tile of another chip was measured yet: each is the largest whose accumulators stay in registers, for more rows mean
# less traffic from L2.
TILES = {
    ("_forward", 64): ((64, 64, 4), (128, 64, 8), (128, 64, 8), (64, 32, 8)),
    ("_forward", 128): ((128, 64, 8), (128, 64, 8), (128, 64, 8), (32, 32, 8)),
    ("_backward_dq", 64): ((64, 64, 4), (128, 64, 8), (128, 64, 8), (64, 32, 8)),
    ("_backward_dq", 128): ((128, 64, 8), (128, 64, 8), (128, 32, 8), (32, 32, 4)),
    ("_backward_dkv", 64): ((64, 64, 4), (64, 128, 8), (32, 128, 8), (32, 64, 8)),
    ("_backward_dkv", 128): ((32, 128, 8), (64, 128, 8), (64, 64, 8), (32, 32, 8)),
}

# wgmma reads its operands from shared memory, which leaves registers for all gradients of a sequence of up to
# SINGLE_BLOCK_SEQLEN rows in one program. This was the fastest of six tiles with 128 queries at S = 128 on the
# H200: 216 us; with 64 keys and eight warps it took 236. With `starts` four warps would spill 8 to 56 bytes per thread.
SINGLE_BLOCK_SEQLEN, SINGLE_BLOCK_TILE, SINGLE_BLOCK_TILE_WITH_STARTS = 128, (128, 32, 4), (128, 32, 8)


def _matrix_unit(q: Tensor) -> int:
    if q.dtype == torch.float32:
        return FMA
    major = 9 if q.device.type == "cpu" else torch.cuda.get_device_capability()[0]  # on a CPU: interpreted
    return {9: WGMMA, 10: TCGEN05}.get(major, MMA)


def _is_single_block(q: Tensor, max_seqlen: int) -> bool:
    return max_seqlen <= SINGLE_BLOCK_SEQLEN and q.shape[-1] <= 64 and _matrix_unit(q) == WGMMA


# More tiles that FASTLM_AUTOTUNE=1 tries; it skips those that do not fit the chip (autotune.py).
CANDIDATES = tuple((m, n, warps) for m in (64, 128) for n in (32, 64, 128) for warps in (4, 8))


def _tile(unit: int, block_m: int, block_n: int, warps: int) -> autotune.Tile:
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        # A branch skips the masking of tiles that need none, except with mma.sync. There the compiler would not see,
        # through the branch, that the scores are an operand of the next product. It would split rows between warps,
        # which then exchange them through shared memory.
        "MASK_ALL": unit == MMA,
        "num_warps": warps,
    }


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    starts: Tensor | None,
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
    """Writes o (B, S, H, D) = dropout(softmax(scale * q k^T + mask)) v and lse (B, H, S); packed (T, H, D), (T, H)."""
    _launch(
        _forward, "BLOCK_M", q, cu_seqlens, max_seqlen,
        (q, k, v, lengths, starts, cu_seqlens, seed, first_sequence, o, lse), (q, k, v, o),
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
    starts: Tensor | None,
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
    """Writes dq, dk and dv in q's shape; they share strides, and so do `do` and o. scratch: (2, *lse.shape) fp32."""
    common = dict(keep=keep, causal=causal, scale=scale)
    single_block = _is_single_block(q, max_seqlen)
    tile = SINGLE_BLOCK_TILE if starts is None else SINGLE_BLOCK_TILE_WITH_STARTS
    _launch(
        _backward_dq, "BLOCK_M", q, cu_seqlens, max_seqlen,
        (do, q, k, v, o, lse, lengths, starts, cu_seqlens, seed, first_sequence, dq, dk, dv, *scratch),
        (q, k, v, o, dq), tile=tile if single_block else None, SINGLE_BLOCK=single_block, **common,
    )  # fmt: skip
    if not single_block:
        _launch(
            _backward_dkv, "BLOCK_N", q, cu_seqlens, max_seqlen,
            (do, q, k, v, lengths, starts, cu_seqlens, seed, first_sequence, dk, dv, *scratch), (q, k, v, o, dk),
            **common,
        )  # fmt: skip


def _launch(
    kernel, block, q, cu_seqlens, max_seqlen, tensors, strided, keep, causal, scale, tile=None, **constants
) -> None:
    """Launches one program per head, sequence and block of rows. `block` names its size: "BLOCK_M" or "BLOCK_N".

    `tile` is the default tile, if it is not that of TILES.
    """
    *_, heads, dim = q.shape
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if 0 in (heads, max_seqlen, sequences):
        return
    if sequences > 65535:
        raise ValueError(f"attention: the Triton kernels take at most 65535 sequences, got {sequences}")
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    strides = [_strides(x, cu_seqlens is not None) for x in strided]

    def run(chosen):
        kernel[heads, triton.cdiv(max_seqlen, chosen[block]), sequences](
            *tensors, *strides, max_seqlen, q.shape[0], scale,
            KEEP=keep, IS_CAUSAL=causal, PRECISION="tf32" if tf32 else "ieee",
            D=dim, BLOCK_D=max(16, triton.next_power_of_2(dim)), **constants, **chosen,
        )  # fmt: skip

    name, unit = kernel.fn.__name__, _matrix_unit(q)
    single_block = constants.get("SINGLE_BLOCK", False)
    default = tile or TILES[name, 64 if dim <= 64 else 128][unit]

    def search_space():
        absent = tuple(x is None for x in tensors)
        shape_class = (f"attention.{name}", q.dtype, dim, triton.next_power_of_2(max_seqlen), absent, keep, causal)
        candidates = (tile for tile in CANDIDATES if tile[0] >= max_seqlen or not single_block)
        return (*shape_class, tf32, single_block), [_tile(unit, *candidate) for candidate in candidates]

    autotune.launch(run, _tile(unit, *default), search_space)


def _strides(x: Tensor, packed: bool) -> tuple:
    """Returns the strides (batch, row, head). The row stride is a constexpr, which saves a pointer per row."""
    batch, row, head, _ = (0, *x.stride()) if packed else x.stride()
    return batch, tl.constexpr(row), head
