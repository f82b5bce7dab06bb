"""GELU(LN(x)), forward and backward.

Bytes a row of E elements of b bytes: the forward reads x and writes y, 2bE; the backward reads dy and x and writes dx,
3bE, and computes the normalised row again from its statistics. For 32768 x 768 in bf16, at the 3.0 TB/s that a copy
reaches on an H100, 34 us and 50 us: the floor. Instructions an element, of the 39 and 57 that an H100 issues in these
times, counted in the machine code for sm_90: forward 28, by erf 45; a turn of the backward's loop 42, by erf 61.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastlm.kernels.gelu import gelu, gelu_and_slope
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


@triton.jit(do_not_specialize=["N"])
def _forward(
    X, GAMMA, BETA, Y, MEAN, RSTD, N, eps, TANH: tl.constexpr,
    E: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = rows(tl.program_id(0), ROWS)
    s = ()
    for i in tl.static_range(CHUNKS):
        s += (load_rows(X, row, columns(i, BLOCK), N, E).to(tl.float32),)
    mean, rstd, centred = normalise(s, eps, E, BLOCK)
    store_statistics(MEAN, RSTD, mean, rstd, row, N)
    for i in tl.static_range(CHUNKS):
        h = affine(centred[i] * rstd, GAMMA, BETA, row, columns(i, BLOCK), E)
        store_rows(Y, gelu(h, TANH), row, columns(i, BLOCK), N, E)


@triton.jit(do_not_specialize=["N"])
def _backward(
    DY, X, MEAN, RSTD, GAMMA, BETA, DX, PARTIALS, N, TANH: tl.constexpr,
    E: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # With h = xhat * gamma + beta, dh = dy * GELU'(h), g = dh * gamma:
    # dx = rstd * (g - mean(g) - xhat * mean(g * xhat)).
    gamma = load_parameters(GAMMA, ROWS, E, BLOCK, CHUNKS)
    dgamma = zeros(ROWS, BLOCK, CHUNKS)
    dbeta = dgamma
    for tile in tl.range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = rows(tile, ROWS)
        mean = tl.load(MEAN + row, mask=row < N, other=0.0)
        rstd = tl.load(RSTD + row, mask=row < N, other=0.0)
        dh, xhat = (), ()
        for i in tl.static_range(CHUNKS):
            dy = load_rows(DY, row, columns(i, BLOCK), N, E).to(tl.float32)
            xhat += ((load_rows(X, row, columns(i, BLOCK), N, E).to(tl.float32) - mean) * rstd,)
            _, slope = gelu_and_slope(affine(xhat[i], GAMMA, BETA, row, columns(i, BLOCK), E), TANH)
            dh += (dy * slope,)
        mean_g, mean_gx = means(dh, xhat, gamma, E)

        dgamma_, dbeta_ = (), ()
        for i in tl.static_range(CHUNKS):
            dx = rstd * (dh[i] * gamma[i] - mean_g - xhat[i] * mean_gx)
            store_rows(DX, dx, row, columns(i, BLOCK), N, E)
            dgamma_ += (dgamma[i] + dh[i] * xhat[i],)
            dbeta_ += (dbeta[i] + dh[i],)
        dgamma, dbeta = dgamma_, dbeta_

    store_partial(PARTIALS, 0, dgamma, E)
    store_partial(PARTIALS, 1, dbeta, E)


def layer_norm_gelu_forward(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor | None,
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
    tanh: bool,
    eps: float,
) -> None:
    """y = GELU(LN(x)), (N, E); mean and rstd (N,) fp32."""
    launch_rows(_forward, x, x, gamma, beta, y, mean, rstd, x.shape[0], eps, TANH=tanh)


def layer_norm_gelu_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    beta: Tensor | None,
    dx: Tensor,
    dgamma: Tensor,
    dbeta: Tensor,
    tanh: bool,
    partials: Tensor,
) -> None:
    """dx (N, E); dgamma, dbeta (E,) fp32 by way of partials (2, programs, E)."""
    programs, n = partials.shape[1], x.shape[0]
    launch_loop(_backward, x, programs, dy, x, mean, rstd, gamma, beta, dx, partials, n, TANH=tanh)
    sum_partials(partials, dgamma, dbeta)
