"""GELU(LN(x)), forward and backward.

Lower bounds on an H100 for 32768 rows of E = 768 elements of b bytes in bf16, set by HBM (3.0 TB/s, what a copy
reaches; computed, not measured). "Issued" is the number of instructions per element that an H100 issues in that time,
"tanh" and "erf" are the numbers counted in the machine code for sm_90 (backward: in its loop).

    pass        reads    writes    bytes per row    lower bound    issued    tanh    erf
    forward     x        y                   2bE          34 us        39      28     45
    backward    dy, x    dx                  3bE          50 us        57      42     61

The backward recomputes the normalised row from its statistics.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastlm.kernels.gelu import gelu, gelu_and_slope
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


@triton.jit(do_not_specialize=["N"])
def _forward(
    X, GAMMA, BETA, Y, MEAN, RSTD, N, eps, TANH: tl.constexpr,
    E: tl.constexpr, BLOCK: tl.constexpr, NUM_BLOCKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = row_indices(tl.program_id(0), ROWS)
    s = ()
    for i in tl.static_range(NUM_BLOCKS):
        s += (load_rows(X, row, column_indices(i, BLOCK), N, E).to(tl.float32),)
    mean, rstd, centred = row_stats(s, eps, E, BLOCK)
    store_row_stats(MEAN, RSTD, mean, rstd, row, N)
    for i in tl.static_range(NUM_BLOCKS):
        h = affine(centred[i] * rstd, GAMMA, BETA, row, column_indices(i, BLOCK), E)
        store_rows(Y, gelu(h, TANH), row, column_indices(i, BLOCK), N, E)


@triton.jit(do_not_specialize=["N"])
def _backward(
    DY, X, MEAN, RSTD, GAMMA, BETA, DX, PARTIALS, N, TANH: tl.constexpr,
    E: tl.constexpr, BLOCK: tl.constexpr, NUM_BLOCKS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # With h = xhat * gamma + beta, dh = dy * GELU'(h), g = dh * gamma:
    # dx = rstd * (g - mean(g) - xhat * mean(g * xhat)).
    gamma = load_parameters(GAMMA, ROWS, E, BLOCK, NUM_BLOCKS)
    dgamma = zeros(ROWS, BLOCK, NUM_BLOCKS)
    dbeta = dgamma
    for tile in tl.range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = row_indices(tile, ROWS)
        mean = tl.load(MEAN + row, mask=row < N, other=0.0)
        rstd = tl.load(RSTD + row, mask=row < N, other=0.0)
        dh, xhat = (), ()
        for i in tl.static_range(NUM_BLOCKS):
            dy = load_rows(DY, row, column_indices(i, BLOCK), N, E).to(tl.float32)
            xhat += ((load_rows(X, row, column_indices(i, BLOCK), N, E).to(tl.float32) - mean) * rstd,)
            _, slope = gelu_and_slope(affine(xhat[i], GAMMA, BETA, row, column_indices(i, BLOCK), E), TANH)
            dh += (dy * slope,)
        mean_g, mean_gx = gradient_means(dh, xhat, gamma, E)

        new_dgamma, new_dbeta = (), ()
        for i in tl.static_range(NUM_BLOCKS):
            dx = rstd * (dh[i] * gamma[i] - mean_g - xhat[i] * mean_gx)
            store_rows(DX, dx, row, column_indices(i, BLOCK), N, E)
            new_dgamma += (dgamma[i] + dh[i] * xhat[i],)
            new_dbeta += (dbeta[i] + dh[i],)
        dgamma, dbeta = new_dgamma, new_dbeta

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
    """Writes y = GELU(LN(x)), (N, E), and mean and rstd (N,) fp32."""
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
    """Writes dx (N, E) and dgamma, dbeta (E,) fp32, through the partial sums partials (2, num_partials, E)."""
    num_partials, n = partials.shape[1], x.shape[0]
    launch_loop(_backward, x, num_partials, dy, x, mean, rstd, gamma, beta, dx, partials, n, TANH=tanh)
    sum_partials(partials, dgamma, dbeta)
