"""dropout(LN(We[tokens] + Wp[positions] + Ws[segments])), forward and backward, and the gradient of a table.

N tokens, E columns of b bytes, a word table of V rows; ids, statistics and the small tables are left out. Lower bounds
on an H100 for BERT-base (N = 32768, E = 768, bf16, V = 30522), set by HBM (3.0 TB/s, what a copy reaches; computed, not
measured):

    kernel               reads                         writes             bytes          lower bound
    forward              a word row per token          y                  2bNE                 34 us
                                                       and the sum        3bNE                 50 us
    backward             dy, sum                       ds                 3bNE                 50 us
    gradient of table    ds, in the order of the ids   each row, fp32     bNE + 4VE            48 us

An H100 issues 57 instructions per element in 50 us. Counted in the machine code for sm_90, with dropout: forward 40
(GPT-1's, without LN, 22), the loop of the backward 27.

The gradient of row v is the sum of ds over the positions of v in the sorted ids, [starts[v], starts[v + 1]). One
program adds them, so the order of the sum, and with it every bit, is fixed. But a frequent token may fill a tenth of
all positions, and each of BERT's two segments half of them. So a first kernel sums each aligned run of 32 positions
that holds a single id. The program of a row then adds the sums of its runs, and at most 31 positions before and 31
after them.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastlm.dropout import LEVELS
from fastlm.kernels.philox import load_first, row_mask
from fastlm.kernels.rows import (
    affine,
    column_indices,
    gradient_means,
    launch_loop,
    launch_rows,
    load_parameters,
    load_rows,
    row_indices,
    row_stats,
    store_partial,
    store_row_stats,
    store_rows,
    sum_partials,
    zeros,
)


@triton.jit
def _gather(TABLE, id, inside, col, E: tl.constexpr):
    """Loads TABLE[id, col] with id (ROWS, 1) int64."""
    return tl.load(TABLE + id * E + col, mask=inside & (col < E), other=0.0)


@triton.jit
def _ids(IDS, row, N, TABLE_ROWS):
    id = tl.load(IDS + row, mask=row < N, other=0)
    tl.device_assert((id >= 0) & (id < TABLE_ROWS), "embedding_layer_norm: an id is out of range")
    return id


@triton.jit(
    do_not_specialize=["N", "S", "V", "C", "T", "keep"],
    do_not_specialize_on_alignment=["SEED", "FIRST_ROW"],
    debug=True,
)
def _forward(
    TOKENS, WORD, POSITION, POSITION_IDS, SEGMENT, SEGMENTS, GAMMA, BETA, SEED, FIRST_ROW, Y, SUM, MEAN, RSTD, N, S, V,
    C, T, keep, scale, eps, E: tl.constexpr, BLOCK: tl.constexpr, NUM_BLOCKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = row_indices(tl.program_id(0), ROWS)
    token = _ids(TOKENS, row, N, V)
    if POSITION is not None:
        position = row % S if POSITION_IDS is None else _ids(POSITION_IDS, row, N, C)
    if SEGMENT is not None:
        segment = _ids(SEGMENTS, row, N, T)
    if SEED is not None:
        seed = tl.load(SEED)
        first_row = load_first(FIRST_ROW)

    s = ()
    for i in tl.static_range(NUM_BLOCKS):
        h = _gather(WORD, token, row < N, column_indices(i, BLOCK), E).to(tl.float32)
        if POSITION is not None:
            h += _gather(POSITION, position, row < N, column_indices(i, BLOCK), E).to(tl.float32)
        if SEGMENT is not None:
            h += _gather(SEGMENT, segment, row < N, column_indices(i, BLOCK), E).to(tl.float32)
        if GAMMA is not None:
            # The sum is rounded before it is normalised, because the backward sees only the rounded sum.
            rounded = h.to(Y.dtype.element_ty)
            if SUM is not None:
                store_rows(SUM, rounded, row, column_indices(i, BLOCK), N, E)
            h = rounded.to(tl.float32)
        s += (h,)
    if GAMMA is not None:
        mean, rstd, s = row_stats(s, eps, E, BLOCK)
        store_row_stats(MEAN, RSTD, mean, rstd, row, N)
    for i in tl.static_range(NUM_BLOCKS):
        y = s[i]
        if GAMMA is not None:
            y = affine(y * rstd, GAMMA, BETA, row, column_indices(i, BLOCK), E)
        if SEED is not None:
            y *= tl.where(row_mask(seed, first_row + row, i * BLOCK, keep, BLOCK), scale, 0.0)
        store_rows(Y, y, row, column_indices(i, BLOCK), N, E)


@triton.jit(do_not_specialize=["N", "keep"], do_not_specialize_on_alignment=["SEED", "FIRST_ROW"])
def _backward(
    DY, SUM, MEAN, RSTD, GAMMA, SEED, FIRST_ROW, DS, PARTIALS, N, keep, scale,
    E: tl.constexpr, BLOCK: tl.constexpr, NUM_BLOCKS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # With dh = dropout(dy), g = dh * gamma: ds = rstd * (g - mean(g) - xhat * mean(g * xhat)).
    gamma = load_parameters(GAMMA, ROWS, E, BLOCK, NUM_BLOCKS)
    dgamma = zeros(ROWS, BLOCK, NUM_BLOCKS)
    dbeta = dgamma
    if SEED is not None:
        seed = tl.load(SEED)
        first_row = load_first(FIRST_ROW)
    for tile in tl.range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = row_indices(tile, ROWS)
        mean = tl.load(MEAN + row, mask=row < N, other=0.0)
        rstd = tl.load(RSTD + row, mask=row < N, other=0.0)
        dh, xhat = (), ()
        for i in tl.static_range(NUM_BLOCKS):
            dy = load_rows(DY, row, column_indices(i, BLOCK), N, E).to(tl.float32)
            if SEED is not None:
                dy *= tl.where(row_mask(seed, first_row + row, i * BLOCK, keep, BLOCK), scale, 0.0)
            dh += (dy,)
            xhat += ((load_rows(SUM, row, column_indices(i, BLOCK), N, E).to(tl.float32) - mean) * rstd,)
        mean_g, mean_gx = gradient_means(dh, xhat, gamma, E)

        new_dgamma, new_dbeta = (), ()
        for i in tl.static_range(NUM_BLOCKS):
            ds = rstd * (dh[i] * gamma[i] - mean_g - xhat[i] * mean_gx)
            store_rows(DS, ds, row, column_indices(i, BLOCK), N, E)
            new_dgamma += (dgamma[i] + dh[i] * xhat[i],)
            new_dbeta += (dbeta[i] + dh[i],)
        dgamma, dbeta = new_dgamma, new_dbeta

    store_partial(PARTIALS, 0, dgamma, E)
    store_partial(PARTIALS, 1, dbeta, E)


@triton.jit(do_not_specialize=["N", "keep"], do_not_specialize_on_alignment=["SEED", "FIRST_ROW"])
def _backward_dropout(
    DY, SEED, FIRST_ROW, DS, N, keep, scale,
    E: tl.constexpr, BLOCK: tl.constexpr, NUM_BLOCKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = row_indices(tl.program_id(0), ROWS)
    seed, first_row = tl.load(SEED), load_first(FIRST_ROW)
    for i in tl.static_range(NUM_BLOCKS):
        dy = load_rows(DY, row, column_indices(i, BLOCK), N, E).to(tl.float32)
        dy *= tl.where(row_mask(seed, first_row + row, i * BLOCK, keep, BLOCK), scale, 0.0)
        store_rows(DS, dy, row, column_indices(i, BLOCK), N, E)


@triton.jit
def _sum_runs(DS, IDS, ORDER, RUNS, RUN: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr):
    """Writes RUNS[i] = the sum of ds over the sorted positions [i * RUN, (i + 1) * RUN), if they hold a single id."""
    run = tl.program_id(0).to(tl.int64)
    if tl.load(IDS + run * RUN) == tl.load(IDS + run * RUN + RUN - 1):
        col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        source_row = tl.load(ORDER + run * RUN + tl.arange(0, RUN))[:, None]
        ds = _gather(DS, source_row, source_row >= 0, col[None, :], E).to(tl.float32)
        tl.store(RUNS + run * E + col, tl.sum(ds, axis=0), mask=col < E)


@triton.jit
def _sum_rows(
    DS, ORDER, STARTS, RUNS, OUT, RUN: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Writes OUT[v] = the sum of ds over the sorted positions [start, end) of v.

    Positions before the first whole run and after the last one are added one by one, whole runs from RUNS.
    """
    v = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    start, end = tl.load(STARTS + v), tl.load(STARTS + v + 1)
    first = tl.minimum((start + RUN - 1) // RUN * RUN, end)
    last = tl.maximum(end // RUN * RUN, first)

    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for i in range(0, first - start + end - last, ROWS):
        i += tl.arange(0, ROWS)[:, None]
        position = tl.where(i < first - start, start + i, last + i - (first - start))
        source_row = tl.load(ORDER + position, mask=position < end, other=0)
        total += _gather(DS, source_row, position < end, col, E).to(tl.float32)
    for i in range(first // RUN, last // RUN, ROWS):
        run = i + tl.arange(0, ROWS)[:, None]
        total += _gather(RUNS, run, run < last // RUN, col, E)
    tl.store(OUT + v * E + col, tl.sum(total, axis=0, keep_dims=True), mask=col < E)


def embedding_layer_norm_forward(
    tokens: Tensor,
    word: Tensor,
    position: Tensor | None,
    position_ids: Tensor | None,
    segment: Tensor | None,
    segments: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    seed: Tensor | None,
    first_row: Tensor | None,
    y: Tensor,
    sum: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    sequence: int,
    keep: int,
    eps: float,
) -> None:
    """Writes sum, the sum of the tables' rows, and y = dropout(LN(sum)), (N, E), and mean and rstd (N,) fp32.

    All ids are (N,). Without position_ids, row n has position n % sequence. Without gamma there is no layer norm.
    """
    table_rows = (1 if t is None else t.shape[0] for t in (word, position, segment))
    launch_rows(
        _forward, y,
        tokens, word, position, position_ids, segment, segments, gamma, beta, seed, first_row, y, sum, mean, rstd,
        y.shape[0], sequence, *table_rows, keep, LEVELS / keep, eps, sanitize_overflow=False,
    )  # fmt: skip


def embedding_layer_norm_backward(
    dy: Tensor,
    sum: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    gamma: Tensor | None,
    seed: Tensor | None,
    first_row: Tensor | None,
    ds: Tensor,
    dgamma: Tensor | None,
    dbeta: Tensor | None,
    keep: int,
    partials: Tensor | None,
) -> None:
    """Writes ds (N, E), the gradient of the sum, and dgamma, dbeta (E,) fp32, through partials (2, num_partials, E).

    Without gamma there is no layer norm: ds = dropout(dy).
    """
    n = dy.shape[0]
    if gamma is None:
        launch_rows(_backward_dropout, dy, dy, seed, first_row, ds, n, keep, LEVELS / keep)
        return
    num_partials = partials.shape[1]
    launch_loop(
        _backward, dy, num_partials,
        dy, sum, mean, rstd, gamma, seed, first_row, ds, partials, n, keep, LEVELS / keep,
    )  # fmt: skip
    sum_partials(partials, dgamma, dbeta)


def embedding_gradient(
    ds: Tensor, ids: Tensor, order: Tensor, starts: Tensor, runs: Tensor, out: Tensor, run: int
) -> None:
    """Writes out[v] (E,) fp32 = the sum of ds (N, E) over the rows whose id is v.

    ids (N,): sorted. order (N,): the row of ds that each sorted id came from. starts (V + 1,): where each id begins in
    `ids`. runs (N // run, E) fp32: scratch for the sums of runs of `run` positions.
    """
    columns = ds.shape[1]
    block = max(16, min(256, triton.next_power_of_2(columns)))
    blocks = triton.cdiv(columns, block)
    if runs.shape[0] > 0:
        _sum_runs[(runs.shape[0], blocks)](ds, ids, order, runs, RUN=run, E=columns, BLOCK=block, num_warps=4)
    # Each row of a vocabulary has few positions. Each row of a small table has many, and needs many loads in flight.
    warps, rows = (1, 4) if out.shape[0] >= 1024 else (8, 32)
    _sum_rows[(out.shape[0], blocks)](
        ds, order, starts, runs, out, RUN=run, E=columns, BLOCK=block, ROWS=rows, num_warps=warps
    )  # fmt: skip
