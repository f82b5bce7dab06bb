"""LN(GELU(x + bias)), forward and backward.

Lower bounds on an H100 for BERT's head, 4915 rows of E = 768 elements of b bytes in bf16, set by HBM (3.0 TB/s, what a
copy reaches; computed, not measured). "Issued" is the number of instructions per element that an H100 issues in that
time, "tanh" and "erf" are the numbers counted in the machine code for sm_90 (backward: in its loop).

    pass        reads    writes    bytes per row    lower bound    issued    tanh    erf
    forward     x        y                   2bE           5 us        39      30     47
    backward    dy, x    dx                  3bE           8 us        57      44     63

The backward recomputes GELU instead of reading its result.
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
    load_parameter,
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
def _add_bias(x, BIAS, row, col, E: tl.constexpr):
    x = x.to(tl.float32)
    if BIAS is not None:
        x += load_parameter(BIAS, row, col, E)
    return x


@triton.jit(do_not_specialize=["N"])
def _forward(
    X, BIAS, GAMMA, BETA, Y, MEAN, RSTD, N, eps, TANH: tl.constexpr,
    E: tl.constexpr, BLOCK: tl.constexpr, NUM_BLOCKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = row_indices(tl.program_id(0), ROWS)
    a = ()
    for i in tl.static_range(NUM_BLOCKS):
        x = load_rows(X, row, column_indices(i, BLOCK), N, E)
        a += (gelu(_add_bias(x, BIAS, row, column_indices(i, BLOCK), E), TANH),)
    mean, rstd, centred = row_stats(a, eps, E, BLOCK)
    store_row_stats(MEAN, RSTD, mean, rstd, row, N)
    for i in tl.static_range(NUM_BLOCKS):
        y = affine(centred[i] * rstd, GAMMA, BETA, row, column_indices(i, BLOCK), E)
        store_rows(Y, y, row, column_indices(i, BLOCK), N, E)


@triton.jit(do_not_specialize=["N"])
def _backward(
    DY, X, BIAS, MEAN, RSTD, GAMMA, DX, PARTIALS, N, TANH: tl.constexpr,
    E: tl.constexpr, BLOCK: tl.constexpr, NUM_BLOCKS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # With h = x + bias, a = GELU(h), g = dy * gamma:
    # da = rstd * (g - mean(g) - xhat * mean(g * xhat)), dx = da * GELU'(h).
    gamma = load_parameters(GAMMA, ROWS, E, BLOCK, NUM_BLOCKS)
    dgamma = zeros(ROWS, BLOCK, NUM_BLOCKS)
    dbeta, dbias = dgamma, dgamma
    for tile in tl.range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = row_indices(tile, ROWS)
        mean = tl.load(MEAN + row, mask=row < N, other=0.0)
        rstd = tl.load(RSTD + row, mask=row < N, other=0.0)
        dy, xhat, slope = (), (), ()
        for i in tl.static_range(NUM_BLOCKS):
            dy += (load_rows(DY, row, column_indices(i, BLOCK), N, E).to(tl.float32),)
            x = load_rows(X, row, column_indices(i, BLOCK), N, E)
            a, da = gelu_and_slope(_add_bias(x, BIAS, row, column_indices(i, BLOCK), E), TANH)
            xhat += ((a - mean) * rstd,)
            slope += (da,)
        mean_g, mean_gx = gradient_means(dy, xhat, gamma, E)

        new_dgamma, new_dbeta, new_dbias = (), (), ()
        for i in tl.static_range(NUM_BLOCKS):
            dx = rstd * (dy[i] * gamma[i] - mean_g - xhat[i] * mean_gx) * slope[i]
            store_rows(DX, dx, row, column_indices(i, BLOCK), N, E)
            new_dgamma += (dgamma[i] + dy[i] * xhat[i],)
            new_dbeta += (dbeta[i] + dy[i],)
            new_dbias += (dbias[i] + dx,)
        dgamma, dbeta, dbias = new_dgamma, new_dbeta, new_dbias

    store_partial(PARTIALS, 0, dgamma, E)
    store_partial(PARTIALS, 1, dbeta, E)
    store_partial(PARTIALS, 2, dbias, E)


def gelu_layer_norm_forward(
    x: Tensor,
    bias: Tensor | None,
    gamma: Tensor,
    beta: Tensor | None,
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
    tanh: bool,
    eps: float,
) -> None:
    """Writes y = LN(GELU(x + bias)), (N, E), and mean and rstd (N,) fp32."""
    launch_rows(_forward, x, x, bias, gamma, beta, y, mean, rstd, x.shape[0], eps, TANH=tanh)


def gelu_layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    dx: Tensor,
    dgamma: Tensor,
    dbeta: Tensor,
    dbias: Tensor,
    tanh: bool,
    partials: Tensor,
) -> None:
    """Writes dx (N, E) and dgamma, dbeta, dbias (E,) fp32, through the partial sums partials (3, num_partials, E)."""
    num_partials, n = partials.shape[1], x.shape[0]
    launch_loop(_backward, x, num_partials, dy, x, bias, mean, rstd, gamma, dx, partials, n, TANH=tanh)
    sum_partials(partials, dgamma, dbeta, dbias)
