"""Layer norm of residual + dropout(x + bias), forward and backward.

Bytes per row of E elements of b bytes (parameters and statistics, less than 1 %, are left out), and lower bounds on an
H100 for 32768 x 768 in bf16, set by HBM (3.0 TB/s, what a copy reaches; computed, not measured):

    pass        reads                writes           bytes       lower bound
    forward     x, residual          y                3bE          50 us
                                     and the sum      4bE          67 us
    backward    dy, sum (or y)       ds               3bE          50 us
                                     and dx           4bE          67 us
    LN(x) is the same kernels without the optional parts: 2bE forward, 3bE backward.

Each kernel makes one pass with the row in registers (rows.py). Instructions matter too: in 50 us an H100 issues about
57 per element. Instructions per element, counted in the machine code for sm_90 (E = 768, bf16; the backward's loop):

    pass                        without dropout    with dropout
    forward                                  21              29
    backward                                 22              31
    backward that reads y                                    38
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
    load_parameter,
    load_parameters,
    load_rows,
    row_indices,
    row_stats,
    row_tile,
    store_partial,
    store_row_stats,
    store_rows,
    sum_partials,
    zeros,
)


@triton.jit(do_not_specialize=["N", "keep"], do_not_specialize_on_alignment=["SEED", "FIRST_ROW"])
def _forward(
    X, RESIDUAL, BIAS, GAMMA, BETA, SEED, FIRST_ROW, Y, SUM, MEAN, RSTD, N, keep, scale, eps,
    E: tl.constexpr, BLOCK: tl.constexpr, NUM_BLOCKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = row_indices(tl.program_id(0), ROWS)
    x, residual = (), ()  # all loads are issued first, so that none waits for another
    for i in tl.static_range(NUM_BLOCKS):
        x += (load_rows(X, row, column_indices(i, BLOCK), N, E),)
        if RESIDUAL is not None:
            residual += (load_rows(RESIDUAL, row, column_indices(i, BLOCK), N, E),)
    if SEED is not None:
        seed = tl.load(SEED)
        first_row = load_first(FIRST_ROW)

    s = ()
    for i in tl.static_range(NUM_BLOCKS):
        h = x[i].to(tl.float32)
        if BIAS is not None:
            h += load_parameter(BIAS, row, column_indices(i, BLOCK), E)
        if SEED is not None:
            h *= tl.where(row_mask(seed, first_row + row, i * BLOCK, keep, BLOCK), scale, 0.0)
        if RESIDUAL is not None:
            h += residual[i].to(tl.float32)
        # The sum is rounded before it is normalised, because the backward sees only the rounded sum.
        rounded = h.to(X.dtype.element_ty)
        if SUM is not None:
            store_rows(SUM, rounded, row, column_indices(i, BLOCK), N, E)
        s += (rounded.to(tl.float32),)

    mean, rstd, centred = row_stats(s, eps, E, BLOCK)
    store_row_stats(MEAN, RSTD, mean, rstd, row, N)
    for i in tl.static_range(NUM_BLOCKS):
        y = affine(centred[i] * rstd, GAMMA, BETA, row, column_indices(i, BLOCK), E)
        store_rows(Y, y, row, column_indices(i, BLOCK), N, E)


@triton.jit
def _load_xhat(SUM, Y, MEAN, GAMMA, BETA, rstd, row, col, N, E: tl.constexpr, BLOCK: tl.constexpr):
    """Returns xhat, from the sum as (s - mean) * rstd, or from the output as (y - beta) / gamma."""
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
    E: tl.constexpr, BLOCK: tl.constexpr, NUM_BLOCKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    # With g = dy * gamma: ds = rstd * (g - mean(g) - xhat * mean(g * xhat)) + dsum, dx = dropout(ds).
    if KEEP_GAMMA:
        gamma = load_parameters(GAMMA, ROWS, E, BLOCK, NUM_BLOCKS)
    dgamma = zeros(ROWS, BLOCK, NUM_BLOCKS)
    dbeta, dbias = dgamma, dgamma
    if SEED is not None:
        seed = tl.load(SEED)
        first_row = load_first(FIRST_ROW)

    for tile in tl.range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = row_indices(tile, ROWS)
        rstd = tl.load(RSTD + row, mask=row < N, other=0.0)
        dy, xhat = (), ()
        for i in tl.static_range(NUM_BLOCKS):
            dy += (load_rows(DY, row, column_indices(i, BLOCK), N, E).to(tl.float32),)
            xhat += (_load_xhat(SUM, Y, MEAN, GAMMA, BETA, rstd, row, column_indices(i, BLOCK), N, E, BLOCK),)
        g = gamma if KEEP_GAMMA else load_parameters(GAMMA, ROWS, E, BLOCK, NUM_BLOCKS)
        mean_g, mean_gx = gradient_means(dy, xhat, g, E)

        new_dgamma, new_dbeta, new_dbias = (), (), ()
        for i in tl.static_range(NUM_BLOCKS):
            g = gamma[i] if KEEP_GAMMA else load_parameter(GAMMA, row, column_indices(i, BLOCK), E)
            ds = rstd * (dy[i] * g - mean_g - xhat[i] * mean_gx)
            if DSUM is not None:
                ds += load_rows(DSUM, row, column_indices(i, BLOCK), N, E).to(tl.float32)
            store_rows(DS, ds, row, column_indices(i, BLOCK), N, E)
            if SEED is not None:
                ds *= tl.where(row_mask(seed, first_row + row, i * BLOCK, keep, BLOCK), scale, 0.0)
                store_rows(DX, ds, row, column_indices(i, BLOCK), N, E)
            new_dgamma += (dgamma[i] + dy[i] * xhat[i],)
            new_dbeta += (dbeta[i] + dy[i],)
            new_dbias += (dbias[i] + ds,)
        dgamma, dbeta, dbias = new_dgamma, new_dbeta, new_dbias

    store_partial(PARTIALS, 0, dgamma, E)
    store_partial(PARTIALS, 1, dbeta, E)
    if HAS_BIAS:
        store_partial(PARTIALS, 2, dbias, E)


def layer_norm_forward(
    x: Tensor, gamma: Tensor, beta: Tensor | None, y: Tensor, mean: Tensor, rstd: Tensor, eps: float
) -> None:
    """Writes y = LN(x), both (N, E), and mean and rstd (N,) fp32."""
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
    """Writes dx (N, E) and dgamma, dbeta (E,) fp32, through the partial sums partials (2, num_partials, E)."""
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
    """Writes sum = residual + dropout(x + bias), y = LN(sum), all (N, E), and mean and rstd (N,) fp32.

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
    """Writes ds and dx = dropout(ds) (N, E) and dgamma, dbeta, dbias (E,) fp32.

    partials (3, num_partials, E) is workspace.
    """
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
    """Does what `add_layer_norm_backward` does, but reads the output y (N, E), not the sum. No gamma may be 0."""
    inputs = (dy, None, None, y, None, rstd, gamma, beta, seed, first_row)
    _launch_backward(inputs, ds, dx, dgamma, dbeta, dbias, keep, partials)


def _launch_backward(inputs, ds, dx, dgamma, dbeta, dbias, keep, partials):
    dy = inputs[0]
    launch_loop(
        _backward, dy, partials.shape[1],
        *inputs, ds, dx, partials, dy.shape[0], keep, LEVELS / keep,
        # The longest rows leave no registers for gamma: see loop_tile.
        HAS_BIAS=dbias is not None, KEEP_GAMMA=row_tile(dy.shape[1], warps=1)["num_warps"] < 16,
    )  # fmt: skip
    sum_partials(partials, dgamma, dbeta, dbias)
