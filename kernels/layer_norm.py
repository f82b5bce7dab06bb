"""Layer norm of residual + dropout(x + bias), forward and backward.

Bytes a row of E elements of b bytes (parameters and statistics aside, which are under 1 %): the forward reads x and
residual and writes y, 3bE, or 4bE with the sum; the backward reads dy and the sum and writes ds, 3bE, or 4bE with dx.
For 32768 x 768 in bf16, at the 3.0 TB/s that a copy reaches on an H100, 50 or 67 us each: the floor.

Both make one pass with the row in registers (rows.py). Instructions matter beside the bytes: an H100 issues about 57 an
element in 50 us. Counted in the machine code for sm_90, E = 768, bf16: forward 20, with dropout 28; a turn of the
backward's loop 20, with dropout 29.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastlm.dropout import LEVELS
from fastlm.kernels.philox import row_mask
from fastlm.kernels.rows import columns, load_parameter, load_rows, store_partial, store_rows, sum_partials, tiling


@triton.jit(do_not_specialize=["N", "keep"])
def _forward(
    X, RESIDUAL, BIAS, GAMMA, BETA, SEED, Y, SUM, MEAN, RSTD, N, keep, scale, eps,
    E: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    x, residual = (), ()  # all loads first: none waits for another's arrival
    for i in tl.static_range(CHUNKS):
        x += (load_rows(X, row, columns(i, BLOCK), N, E),)
        residual += (load_rows(RESIDUAL, row, columns(i, BLOCK), N, E),)
    if SEED is not None:
        seed = tl.load(SEED)

    s = ()
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for i in tl.static_range(CHUNKS):
        h = x[i].to(tl.float32)
        if BIAS is not None:
            h += load_parameter(BIAS, row, columns(i, BLOCK), E)
        if SEED is not None:
            h *= tl.where(row_mask(seed, row, i * BLOCK, keep, BLOCK), scale, 0.0)
        # Rounded before it is normalised: the backward sees this sum, not a finer one.
        rounded = (residual[i].to(tl.float32) + h).to(X.dtype.element_ty)
        if SUM is not None:
            store_rows(SUM, rounded, row, columns(i, BLOCK), N, E)
        s += (rounded.to(tl.float32),)
        total += s[i]
    mean = tl.sum(total, axis=1, keep_dims=True) / E

    centred = ()
    square = tl.zeros((ROWS, BLOCK), tl.float32)
    for i in tl.static_range(CHUNKS):
        c = s[i] - mean
        if E % BLOCK != 0:
            c = tl.where(columns(i, BLOCK) < E, c, 0.0)
        centred += (c,)
        square += c * c
    rstd = tl.rsqrt(tl.sum(square, axis=1, keep_dims=True) / E + eps)
    tl.store(MEAN + row, mean, mask=row < N)
    tl.store(RSTD + row, rstd, mask=row < N)

    for i in tl.static_range(CHUNKS):
        y = centred[i] * rstd * load_parameter(GAMMA, row, columns(i, BLOCK), E)
        if BETA is not None:
            y += load_parameter(BETA, row, columns(i, BLOCK), E)
        store_rows(Y, y, row, columns(i, BLOCK), N, E)


@triton.jit(do_not_specialize=["N", "keep"])
def _backward(
    DY, DSUM, SUM, MEAN, RSTD, GAMMA, SEED, DS, DX, PARTIALS, N, keep, scale, HAS_BIAS: tl.constexpr,
    KEEP_GAMMA: tl.constexpr, STAGES: tl.constexpr,
    E: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    # With g = dy * gamma: ds = rstd * (g - mean(g) - xhat * mean(g * xhat)) + dsum, dx = dropout(ds).
    gamma, dgamma, dbeta, dbias = (), (), (), ()
    zero = tl.zeros((ROWS, BLOCK), tl.float32)
    for i in tl.static_range(CHUNKS):
        if KEEP_GAMMA:
            gamma += (load_parameter(GAMMA, tl.arange(0, ROWS)[:, None], columns(i, BLOCK), E),)
        dgamma += (zero,)
        dbeta += (zero,)
        dbias += (zero,)
    if SEED is not None:
        seed = tl.load(SEED)

    for tile in tl.range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        mean = tl.load(MEAN + row, mask=row < N, other=0.0)
        rstd = tl.load(RSTD + row, mask=row < N, other=0.0)
        dy, xhat = (), ()
        total, product = zero, zero
        for i in tl.static_range(CHUNKS):
            g = gamma[i] if KEEP_GAMMA else load_parameter(GAMMA, row, columns(i, BLOCK), E)
            dy += (load_rows(DY, row, columns(i, BLOCK), N, E).to(tl.float32),)
            xhat += ((load_rows(SUM, row, columns(i, BLOCK), N, E).to(tl.float32) - mean) * rstd,)
            total += dy[i] * g
            product += dy[i] * g * xhat[i]
        mean_g = tl.sum(total, axis=1, keep_dims=True) / E
        mean_gx = tl.sum(product, axis=1, keep_dims=True) / E

        dgamma_, dbeta_, dbias_ = (), (), ()
        for i in tl.static_range(CHUNKS):
            g = gamma[i] if KEEP_GAMMA else load_parameter(GAMMA, row, columns(i, BLOCK), E)
            ds = rstd * (dy[i] * g - mean_g - xhat[i] * mean_gx)
            if DSUM is not None:
                ds += load_rows(DSUM, row, columns(i, BLOCK), N, E).to(tl.float32)
            store_rows(DS, ds, row, columns(i, BLOCK), N, E)
            if SEED is not None:
                ds *= tl.where(row_mask(seed, row, i * BLOCK, keep, BLOCK), scale, 0.0)
                store_rows(DX, ds, row, columns(i, BLOCK), N, E)
            dgamma_ += (dgamma[i] + dy[i] * xhat[i],)
            dbeta_ += (dbeta[i] + dy[i],)
            dbias_ += (dbias[i] + ds,)
        dgamma, dbeta, dbias = dgamma_, dbeta_, dbias_

    store_partial(PARTIALS, 0, dgamma, E)
    store_partial(PARTIALS, 1, dbeta, E)
    if HAS_BIAS:
        store_partial(PARTIALS, 2, dbias, E)


def add_layer_norm_forward(
    x: Tensor,
    residual: Tensor,
    bias: Tensor | None,
    gamma: Tensor,
    beta: Tensor | None,
    seed: Tensor | None,
    y: Tensor,
    sum: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    keep: int,
    eps: float,
) -> None:
    """y = LN(sum), sum = residual + dropout(x + bias), all (N, E); mean and rstd (N,) fp32."""
    rows, tile = x.shape[0], tiling(x.shape[1], warps=4)
    _forward[(triton.cdiv(rows, tile["ROWS"]),)](
        x, residual, bias, gamma, beta, seed, y, sum, mean, rstd, rows, keep, LEVELS / keep, eps, **tile
    )  # fmt: skip


def add_layer_norm_backward(
    dy: Tensor,
    dsum: Tensor | None,
    sum: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    seed: Tensor | None,
    ds: Tensor,
    dx: Tensor | None,
    dgamma: Tensor,
    dbeta: Tensor | None,
    dbias: Tensor | None,
    keep: int,
    partials: Tensor,
) -> None:
    """ds (N, E) of the residual, dx = dropout(ds); dgamma, dbeta, dbias (E,) fp32, via partials (3, programs, E)."""
    rows, tile = sum.shape[0], tiling(sum.shape[1], warps=2)
    # Under way beside the tile at work: two, or one where that is as many bytes. The longest rows' 512 threads have 128
    # registers each, into which gamma and addresses of tiles to come no longer fit.
    longest = tile["num_warps"] == 16
    stages = 1 if longest else 3 if sum.element_size() == 2 and tile["E"] <= 4096 else 2
    _backward[(partials.shape[1],)](
        dy, dsum, sum, mean, rstd, gamma, seed, ds, dx, partials, rows, keep, LEVELS / keep,
        HAS_BIAS=dbias is not None, KEEP_GAMMA=not longest, STAGES=stages, **tile,
    )  # fmt: skip
    sum_partials(partials, dgamma, dbeta, dbias)
