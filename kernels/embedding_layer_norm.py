"""dropout(LN(We[tokens] + Wp[positions] + Ws[segments])), forward and backward, and the gradient of a table.

Bytes of N tokens, E columns of b bytes (ids, statistics and the small tables aside): the forward reads a row of the
word table for each token and writes y, 2bNE, or 3bNE with the sum. The backward reads dy and the sum and writes ds,
3bNE; the gradient of a table of V rows reads ds in the order of the ids and writes each row once, in fp32, bNE + 4VE.
For BERT-base, N = 32768 and E = 768 in bf16, V = 30522, at the 3.0 TB/s that a copy reaches on an H100: forward 34 us
(50 with the sum), backward 50 us, word table 48 us. Instructions an element, of the 57 that an H100 issues in 50 us,
counted in the machine code for sm_90, with dropout: forward 40, GPT-1's 22; a turn of the backward's loop 27.

The gradient of row v is the sum of ds over the places of v in the sorted ids, [starts[v], starts[v + 1]), and one
program adds them, so that nothing depends on who comes first. A token may stand in a tenth of all places, and each of
BERT's two segments in half of them, so a first kernel sums every aligned run of 32 places that holds one id alone; to
the program of a row are left those sums, and at most 31 places before them and 31 behind.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastlm.dropout import LEVELS
from fastlm.kernels.philox import load_first, row_mask
from fastlm.kernels.rows import (
    affine,
    columns,
    launch_loop,
    launch_rows,
    load_parameters,
    load_rows,
    means,
    normalise,
    rows,
    store_partial,
    store_rows,
    store_statistics,
    sum_partials,
    zeros,
)


@triton.jit
def _gather(TABLE, id, inside, col, E: tl.constexpr):
    """TABLE[id, col] with id (ROWS, 1) int64."""
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
    C, T, keep, scale, eps, E: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = rows(tl.program_id(0), ROWS)
    token = _ids(TOKENS, row, N, V)
    if POSITION is not None:
        position = row % S if POSITION_IDS is None else _ids(POSITION_IDS, row, N, C)
    if SEGMENT is not None:
        segment = _ids(SEGMENTS, row, N, T)
    if SEED is not None:
        seed = tl.load(SEED)
        first_row = load_first(FIRST_ROW)

    s = ()
    for i in tl.static_range(CHUNKS):
        h = _gather(WORD, token, row < N, columns(i, BLOCK), E).to(tl.float32)
        if POSITION is not None:
            h += _gather(POSITION, position, row < N, columns(i, BLOCK), E).to(tl.float32)
        if SEGMENT is not None:
            h += _gather(SEGMENT, segment, row < N, columns(i, BLOCK), E).to(tl.float32)
        if GAMMA is not None:
            # Rounded before it is normalised: the backward sees this sum, not a finer one.
            rounded = h.to(Y.dtype.element_ty)
            if SUM is not None:
                store_rows(SUM, rounded, row, columns(i, BLOCK), N, E)
            h = rounded.to(tl.float32)
        s += (h,)
    if GAMMA is not None:
        mean, rstd, s = normalise(s, eps, E, BLOCK)
        store_statistics(MEAN, RSTD, mean, rstd, row, N)
    for i in tl.static_range(CHUNKS):
        y = s[i]
        if GAMMA is not None:
            y = affine(y * rstd, GAMMA, BETA, row, columns(i, BLOCK), E)
        if SEED is not None:
            y *= tl.where(row_mask(seed, first_row + row, i * BLOCK, keep, BLOCK), scale, 0.0)
        store_rows(Y, y, row, columns(i, BLOCK), N, E)


@triton.jit(do_not_specialize=["N", "keep"], do_not_specialize_on_alignment=["SEED", "FIRST_ROW"])
def _backward(
    DY, SUM, MEAN, RSTD, GAMMA, SEED, FIRST_ROW, DS, PARTIALS, N, keep, scale,
    E: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # With dh = dropout(dy), g = dh * gamma: ds = rstd * (g - mean(g) - xhat * mean(g * xhat)).
    gamma = load_parameters(GAMMA, ROWS, E, BLOCK, CHUNKS)
    dgamma = zeros(ROWS, BLOCK, CHUNKS)
    dbeta = dgamma
    if SEED is not None:
        seed = tl.load(SEED)
        first_row = load_first(FIRST_ROW)
    for tile in tl.range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = rows(tile, ROWS)
        mean = tl.load(MEAN + row, mask=row < N, other=0.0)
        rstd = tl.load(RSTD + row, mask=row < N, other=0.0)
        dh, xhat = (), ()
        for i in tl.static_range(CHUNKS):
            dy = load_rows(DY, row, columns(i, BLOCK), N, E).to(tl.float32)
            if SEED is not None:
                dy *= tl.where(row_mask(seed, first_row + row, i * BLOCK, keep, BLOCK), scale, 0.0)
            dh += (dy,)
            xhat += ((load_rows(SUM, row, columns(i, BLOCK), N, E).to(tl.float32) - mean) * rstd,)
        mean_g, mean_gx = means(dh, xhat, gamma, E)

        dgamma_, dbeta_ = (), ()
        for i in tl.static_range(CHUNKS):
            ds = rstd * (dh[i] * gamma[i] - mean_g - xhat[i] * mean_gx)
            store_rows(DS, ds, row, columns(i, BLOCK), N, E)
            dgamma_ += (dgamma[i] + dh[i] * xhat[i],)
            dbeta_ += (dbeta[i] + dh[i],)
        dgamma, dbeta = dgamma_, dbeta_

    store_partial(PARTIALS, 0, dgamma, E)
    store_partial(PARTIALS, 1, dbeta, E)


@triton.jit(do_not_specialize=["N", "keep"], do_not_specialize_on_alignment=["SEED", "FIRST_ROW"])
def _dropped(
    DY, SEED, FIRST_ROW, DS, N, keep, scale,
    E: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = rows(tl.program_id(0), ROWS)
    seed, first_row = tl.load(SEED), load_first(FIRST_ROW)
    for i in tl.static_range(CHUNKS):
        dy = load_rows(DY, row, columns(i, BLOCK), N, E).to(tl.float32)
        dy *= tl.where(row_mask(seed, first_row + row, i * BLOCK, keep, BLOCK), scale, 0.0)
        store_rows(DS, dy, row, columns(i, BLOCK), N, E)


@triton.jit
def _sum_runs(DS, IDS, ORDER, RUNS, RUN: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr):
    """RUNS[i] = the sum of ds over places [i * RUN, (i + 1) * RUN) of the sorted ids, where these are all one id."""
    run = tl.program_id(0).to(tl.int64)
    if tl.load(IDS + run * RUN) == tl.load(IDS + run * RUN + RUN - 1):
        col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        place = tl.load(ORDER + run * RUN + tl.arange(0, RUN))[:, None]
        ds = _gather(DS, place, place >= 0, col[None, :], E).to(tl.float32)
        tl.store(RUNS + run * E + col, tl.sum(ds, axis=0), mask=col < E)


@triton.jit
def _sum_rows(
    DS, ORDER, STARTS, RUNS, OUT, RUN: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """OUT[v] = the sum of ds over the places [start, end) of v: before its first whole run, the runs, the rest."""
    v = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    start, end = tl.load(STARTS + v), tl.load(STARTS + v + 1)
    first = tl.minimum((start + RUN - 1) // RUN * RUN, end)
    last = tl.maximum(end // RUN * RUN, first)

    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for i in range(0, first - start + end - last, ROWS):
        i += tl.arange(0, ROWS)[:, None]
        at = tl.where(i < first - start, start + i, last + i - (first - start))
        place = tl.load(ORDER + at, mask=at < end, other=0)
        total += _gather(DS, place, at < end, col, E).to(tl.float32)
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
    """y = dropout(LN(sum)), (N, E), of the sum of the tables' rows; ids (N,); mean and rstd (N,) fp32.

    Row n takes position n % sequence where there are no position_ids. Without gamma there is no layer norm.
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
    """ds (N, E) of the tables' sum; dgamma, dbeta (E,) fp32 by way of partials (2, programs, E).

    Without gamma there is dropout alone.
    """
    n = dy.shape[0]
    if gamma is None:
        launch_rows(_dropped, dy, dy, seed, first_row, ds, n, keep, LEVELS / keep)
        return
    programs = partials.shape[1]
    launch_loop(
        _backward, dy, programs,
        dy, sum, mean, rstd, gamma, seed, first_row, ds, partials, n, keep, LEVELS / keep,
    )  # fmt: skip
    sum_partials(partials, dgamma, dbeta)


def embedding_gradient(
    ds: Tensor, ids: Tensor, order: Tensor, starts: Tensor, runs: Tensor, out: Tensor, run: int
) -> None:
    """out[v] (E,) fp32 = the sum of ds (N, E) over the places where v is.

    ids (N,) are sorted, order (N,) are the places that they came from, starts (V + 1,) where each row's begin in ids;
    runs (N // run, E) fp32 is room for sums over runs of `run` places.
    """
    columns = ds.shape[1]
    block = max(16, min(256, triton.next_power_of_2(columns)))
    blocks = triton.cdiv(columns, block)
    if runs.shape[0] > 0:
        _sum_runs[(runs.shape[0], blocks)](ds, ids, order, runs, RUN=run, E=columns, BLOCK=block, num_warps=4)
    # A vocabulary has many rows of few places. A small table's have many each, and need many loads under way.
    warps, rows = (1, 4) if out.shape[0] >= 1024 else (8, 32)
    _sum_rows[(out.shape[0], blocks)](
        ds, order, starts, runs, out, RUN=run, E=columns, BLOCK=block, ROWS=rows, num_warps=warps
    )  # fmt: skip
