"""GELU(x + bias), forward and backward.

Lower bounds on an H100 for N = 32768 rows of F = 3072 elements of b bytes in bf16, set by HBM (3.0 TB/s, what a copy
reaches; computed, not measured). "Issued" is the number of instructions per element that an H100 issues in that time,
"tanh" and "erf" are the numbers counted in the machine code for sm_90 (backward: in its loop). The bias is left out.

    pass        reads    writes    bytes    lower bound    issued    tanh    erf
    forward     x        y         2bNF          134 us        39      20     37
    backward    dy, x    dx        3bNF          201 us        57      30     50

The backward recomputes GELU's argument. No row must be held as a whole, so a tile is ROWS x BLOCK and F may be any
number. A program of the backward keeps its columns and loops over rows, so each program writes one partial sum of the
bias's gradient.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastlm.kernels.gelu import gelu, gelu_and_slope
from fastlm.kernels.rows import load_rows, row_indices, store_rows, sum_partials

BLOCK = 256  # columns that one warp loads, at 16 bytes per thread in fp16 or bf16
FORWARD_ROWS = 16  # four rows per warp: four such loads of x in flight
BACKWARD_ROWS = 8  # two rows per warp: two loads of x and two of dy, and as many for each of the next tiles


@triton.jit
def _column_indices(BLOCK: tl.constexpr):
    return tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]


@triton.jit
def _load_bias(BIAS, col, F: tl.constexpr):
    return 0.0 if BIAS is None else tl.load(BIAS + col, mask=col < F, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["N"])
def _forward(X, BIAS, Y, N, TANH: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    row, col = row_indices(tl.program_id(0), ROWS), _column_indices(BLOCK)
    h = load_rows(X, row, col, N, F).to(tl.float32) + _load_bias(BIAS, col, F)
    store_rows(Y, gelu(h, TANH), row, col, N, F)


@triton.jit(do_not_specialize=["N"])
def _backward(
    DY, X, BIAS, DX, PARTIALS, N, TANH: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    col = _column_indices(BLOCK)
    bias = _load_bias(BIAS, col, F)
    dbias = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0), num_stages=3):
        row = row_indices(tile, ROWS)
        dy = load_rows(DY, row, col, N, F).to(tl.float32)
        _, slope = gelu_and_slope(load_rows(X, row, col, N, F).to(tl.float32) + bias, TANH)
        store_rows(DX, dy * slope, row, col, N, F)
        dbias += dy * slope
    tl.store(PARTIALS + tl.program_id(0) * F + col, tl.sum(dbias, axis=0, keep_dims=True), mask=col < F)


def bias_gelu_forward(x: Tensor, bias: Tensor | None, y: Tensor, tanh: bool) -> None:
    """Writes y = GELU(x + bias), (N, F)."""
    n, tile = x.shape[0], _tile(x, FORWARD_ROWS)
    _forward[(triton.cdiv(n, FORWARD_ROWS), triton.cdiv(tile["F"], tile["BLOCK"]))](x, bias, y, n, TANH=tanh, **tile)


def bias_gelu_backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, dx: Tensor, dbias: Tensor, tanh: bool, partials: Tensor
) -> None:
    """Writes dx (N, F) and dbias (F,) fp32, through the partial sums partials (1, num_partials, F)."""
    n, tile = x.shape[0], _tile(x, BACKWARD_ROWS)
    grid = (partials.shape[1], triton.cdiv(tile["F"], tile["BLOCK"]))
    _backward[grid](dy, x, bias, dx, partials, n, TANH=tanh, **tile)
    sum_partials(partials, dbias)


def _tile(x: Tensor, rows: int) -> dict[str, int]:
    columns = x.shape[1]
    return {"F": columns, "BLOCK": max(16, min(BLOCK, triton.next_power_of_2(columns))), "ROWS": rows, "num_warps": 4}
