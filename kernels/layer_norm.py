"""Layer norm of residual + dropout(x + bias), forward and backward.

Bytes a row of E elements of b bytes (parameters and statistics aside, which are under 1 %): the forward reads x and
residual and writes y, 3bE, or 4bE with the sum; the backward reads dy and the sum and writes ds, 3bE, or 4bE with dx.
For 32768 x 768 in bf16, at the 3.0 TB/s that a copy reaches on an H100, 50 or 67 us each: the floor. LN(x) alone is the
same kernels without the parts that it has not: 2bE forward, 3bE backward.

Both make one pass with the row in registers (rows.py). Instructions matter beside the bytes: an H100 issues about 57 an
element in 50 us. Counted in the machine code for sm_90, E = 768, bf16: forward 21, with dropout 29; a turn of the
backward's loop 22, with dropout 31, and 38 where it reads y instead of the sum.
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
    load_parameter,
    load_parameters,
    load_rows,
    means,
    normalise,
    rows,
    store_partial,
    store_rows,
    store_statistics,
    sum_partials,
    tiling,
    zeros,
)


@triton.jit(do_not_specialize=["N", "keep"], do_not_specialize_on_alignment=["SEED", "FIRST_ROW"])
def _forward(
    X, RESIDUAL, BIAS, GAMMA, BETA, SEED, FIRST_ROW, Y, SUM, MEAN, RSTD, N, keep, scale, eps,
    E: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = rows(tl.program_id(0), ROWS)
    x, residual = (), ()  # all loads first: none waits for another's arrival
    for i in tl.static_range(CHUNKS):
        x += (load_rows(X, row, columns(i, BLOCK), N, E),)
        if RESIDUAL is not None:
            residual += (load_rows(RESIDUAL, row, columns(i, BLOCK), N, E),)
    if SEED is not None:
        seed = tl.load(SEED)
        first_row = load_first(FIRST_ROW)

    s = ()
    for i in tl.static_range(CHUNKS):
        h = x[i].to(tl.float32)
        if BIAS is not None:
            h += load_parameter(BIAS, row, columns(i, BLOCK), E)
        if SEED is not None:
            h *= tl.where(row_mask(seed, first_row + row, i * BLOCK, keep, BLOCK), scale, 0.0)
        if RESIDUAL is not None:
            h += residual[i].to(tl.float32)
        # Rounded before it is normalised: the backward sees this sum, not a finer one.
        rounded = h.to(X.dtype.element_ty)
        if SUM is not None:
            store_rows(SUM, rounded, row, columns(i, BLOCK), N, E)
        s += (rounded.to(tl.float32),)

    mean, rstd, centred = normalise(s, eps, E, BLOCK)
    store_statistics(MEAN, RSTD, mean, rstd, row, N)
    for i in tl.static_range(CHUNKS):
        y = affine(centred[i] * rstd, GAMMA, BETA, row, columns(i, BLOCK), E)
        store_rows(Y, y, row, columns(i, BLOCK), N, E)


@triton.jit
def _normalised(SUM, Y, MEAN, GAMMA, BETA, rstd, row, col, N, E: tl.constexpr, BLOCK: tl.constexpr):
    """xhat from the sum, (s - mean) * rstd, or from the output, (y - beta) / gamma."""
    if Y is None:
        mean = tl.load(MEAN + row, mask=row < N, other=0.0)
        return (load_rows(SUM, row, col, N, E).to(tl.float32) - mean) * rstd
    else:
        xhat = load_rows(Y, row, col, N, E).to(tl.float32)
        if BETA is not None:
            xhat -= load_parameter(BETA, row, col, E)
        gamma = load_parameter(GAMMA, row, col, E)
        return xhat / (gamma if E % BLOCK == 0 else tl.where(col < E, gamma, 1.0))


@triton.jit(do_not_specialize=["N", "keep"], do_not_specialize_on_alignment=["SEED", "FIRST_ROW"])
def _backward(
    DY, DSUM, SUM, Y, MEAN, RSTD, GAMMA, BETA, SEED, FIRST_ROW, DS, DX, PARTIALS, N, keep, scale,
    HAS_BIAS: tl.constexpr, KEEP_GAMMA: tl.constexpr, STAGES: tl.constexpr,
    E: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    # With g = dy * gamma: ds = rstd * (g - mean(g) - xhat * mean(g * xhat)) + dsum, dx = dropout(ds).
    if KEEP_GAMMA:
        gamma = load_parameters(GAMMA, ROWS, E, BLOCK, CHUNKS)
    dgamma = zeros(ROWS, BLOCK, CHUNKS)
    dbeta, dbias = dgamma, dgamma
    if SEED is not None:
        seed = tl.load(SEED)
        first_row = load_first(FIRST_ROW)

    for tile in tl.range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = rows(tile, ROWS)
        rstd = tl.load(RSTD + row, mask=row < N, other=0.0)
        dy, xhat = (), ()
        for i in tl.static_range(CHUNKS):
            dy += (load_rows(DY, row, columns(i, BLOCK), N, E).to(tl.float32),)
            xhat += (_normalised(SUM, Y, MEAN, GAMMA, BETA, rstd, row, columns(i, BLOCK), N, E, BLOCK),)
        g = gamma if KEEP_GAMMA else load_parameters(GAMMA, ROWS, E, BLOCK, CHUNKS)
        mean_g, mean_gx = means(dy, xhat, g, E)

        dgamma_, dbeta_, dbias_ = (), (), ()
        for i in tl.static_range(CHUNKS):
            g = gamma[i] if KEEP_GAMMA else load_parameter(GAMMA, row, columns(i, BLOCK), E)
            ds = rstd * (dy[i] * g - mean_g - xhat[i] * mean_gx)
            if DSUM is not None:
                ds += load_rows(DSUM, row, columns(i, BLOCK), N, E).to(tl.float32)
            store_rows(DS, ds, row, columns(i, BLOCK), N, E)
            if SEED is not None:
                ds *= tl.where(row_mask(seed, first_row + row, i * BLOCK, keep, BLOCK), scale, 0.0)
                store_rows(DX, ds, row, columns(i, BLOCK), N, E)
            dgamma_ += (dgamma[i] + dy[i] * xhat[i],)
            dbeta_ += (dbeta[i] + dy[i],)
            dbias_ += (dbias[i] + ds,)
        dgamma, dbeta, dbias = dgamma_, dbeta_, dbias_

    store_partial(PARTIALS, 0, dgamma, E)
    store_partial(PARTIALS, 1, dbeta, E)
    if HAS_BIAS:
        store_partial(PARTIALS, 2, dbias, E)


def layer_norm_forward(
    x: Tensor, gamma: Tensor, beta: Tensor | None, y: Tensor, mean: Tensor, rstd: Tensor, eps: float
) -> None:
    """y = LN(x), both (N, E); mean and rstd (N,) fp32."""
    add_layer_norm_forward(x, None, None, gamma, beta, None, None, y, None, mean, rstd, LEVELS, eps)


def layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    dx: Tensor,
    dgamma: Tensor,
    dbeta: Tensor,
    partials: Tensor,
) -> None:
    """dx (N, E); dgamma, dbeta (E,) fp32 by way of partials (2, programs, E)."""
    add_layer_norm_backward(
        dy, None, x, mean, rstd, gamma, None, None, dx, None, dgamma, dbeta, None, LEVELS, partials
    )  # fmt: skip


def add_layer_norm_forward(
    x: Tensor,
    residual: Tensor | None,
    bias: Tensor | None,
    gamma: Tensor,
    beta: Tensor | None,
    seed: Tensor | None,
    first_row: Tensor | None,
    y: Tensor,
    sum: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    keep: int,
    eps: float,
) -> None:
    """y = LN(sum), sum = residual + dropout(x + bias), all (N, E); mean and rstd (N,) fp32.

    seed and first_row are (1,) int64: see fastlm.dropout.
    """
    launch_rows(
        _forward, x,
        x, residual, bias, gamma, beta, seed, first_row, y, sum, mean, rstd, x.shape[0], keep, LEVELS / keep, eps,
    )  # fmt: skip


def add_layer_norm_backward(
    dy: Tensor,
    dsum: Tensor | None,
    sum: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    seed: Tensor | None,
    first_row: Tensor | None,
    ds: Tensor,
    dx: Tensor | None,
    dgamma: Tensor,
    dbeta: Tensor | None,
    dbias: Tensor | None,
    keep: int,
    partials: Tensor,
) -> None:
    """ds (N, E) and dx = dropout(ds); dgamma, dbeta, dbias (E,) fp32 by way of partials (3, programs, E)."""
    inputs = (dy, dsum, sum, None, mean, rstd, gamma, None, seed, first_row)
    _launch_backward(inputs, ds, dx, dgamma, dbeta, dbias, keep, partials)


def add_layer_norm_backward_from_output(
    dy: Tensor,
    y: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    beta: Tensor | None,
    seed: Tensor | None,
    first_row: Tensor | None,
    ds: Tensor,
    dx: Tensor | None,
    dgamma: Tensor,
    dbeta: Tensor,
    dbias: Tensor | None,
    keep: int,
    partials: Tensor,
) -> None:
    """Does what `add_layer_norm_backward` does, from the output y (N, E) in place of the sum; no gamma may be 0."""
    inputs = (dy, None, None, y, None, rstd, gamma, beta, seed, first_row)
    _launch_backward(inputs, ds, dx, dgamma, dbeta, dbias, keep, partials)


def _launch_backward(inputs, ds, dx, dgamma, dbeta, dbias, keep, partials):
    dy = inputs[0]
    launch_loop(
        _backward, dy, partials.shape[1],
        *inputs, ds, dx, partials, dy.shape[0], keep, LEVELS / keep,
        # Of the longest rows gamma does not fit into registers either: see loop_tiling.
        HAS_BIAS=dbias is not None, KEEP_GAMMA=tiling(dy.shape[1], warps=1)["num_warps"] < 16,
    )  # fmt: skip
    sum_partials(partials, dgamma, dbeta, dbias)
