"""Shared by the kernels over rows of an (N, E) array: how rows lie in registers, and sums over all rows.

A program holds ROWS rows at a time, as a tuple of NUM_BLOCKS column blocks (ROWS, BLOCK). For E = 768:

    columns    0 ... 255    256 ... 511    512 ... 767
    block      0            1              2

Triton's blocks are powers of two, so one block of 1024 columns would leave a quarter of the threads idle. One warp
loads 256 columns of fp16 or bf16 at 16 bytes per thread. Up to E = 768 a row belongs to one warp: its sums need no
barrier, and dropout needs no exchange between warps. Longer rows take 2, 4, 8 or 16 warps.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastlm.kernels import autotune

COLUMNS_PER_WARP = 256  # of one block
MAX_BLOCKS = 3  # a thread then holds 24 values of a row, and in the backward five such sets
MAX_COLUMNS = 8192  # the registers of 512 threads hold no longer row


@triton.jit
def column_indices(i: tl.constexpr, BLOCK: tl.constexpr):
    """Returns the column indices of block i: (1, BLOCK)."""
    return i * BLOCK + tl.arange(0, BLOCK)[None, :]


@triton.jit
def row_indices(tile, ROWS: tl.constexpr):
    """Returns the row indices of a tile of rows: (ROWS, 1), int64."""
    return tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]


@triton.jit
def load_rows(X, row, col, N, E: tl.constexpr):
    """Loads X[row, col] with row (ROWS, 1) int64 and col (1, BLOCK); zeros outside of (N, E)."""
    return tl.load(X + row * E + col, mask=(row < N) & (col < E), other=0.0)


@triton.jit
def store_rows(X, value, row, col, N, E: tl.constexpr):
    tl.store(X + row * E + col, value.to(X.dtype.element_ty), mask=(row < N) & (col < E))


@triton.jit
def load_parameter(P, row, col, E: tl.constexpr):
    """Loads P[col] once per row, in fp32: (ROWS, BLOCK). A (BLOCK,) block would need a conversion of its layout."""
    col = tl.broadcast_to(col, row.shape[0], col.shape[1])
    return tl.load(P + col, mask=col < E, other=0.0).to(tl.float32)


@triton.jit
def load_parameters(P, ROWS: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr, NUM_BLOCKS: tl.constexpr):
    """Loads a parameter as `load_parameter` does, all column blocks."""
    blocks = ()
    for i in tl.static_range(NUM_BLOCKS):
        blocks += (load_parameter(P, tl.arange(0, ROWS)[:, None], column_indices(i, BLOCK), E),)
    return blocks


@triton.jit
def zeros(ROWS: tl.constexpr, BLOCK: tl.constexpr, NUM_BLOCKS: tl.constexpr):
    blocks = ()
    for _ in tl.static_range(NUM_BLOCKS):
        blocks += (tl.zeros((ROWS, BLOCK), tl.float32),)
    return blocks


@triton.jit
def row_stats(s, eps, E: tl.constexpr, BLOCK: tl.constexpr):
    """Returns mean and rstd (ROWS, 1) of the rows s, and s - mean. s and s - mean are fp32 blocks, zero from E on.

    The sum of a row is rounded, so its mean is wrong by a few units in the last place. rstd would multiply this error:
    it is 10^6 for a constant row at BERT's eps of 1e-12. So the mean of s - mean is added to the mean. This makes the
    mean of a constant row exact, and costs 2.4 instructions per element (counted for sm_90, E = 768) and no bytes.
    """
    mean = _mean(s, E)
    mean += _mean(_centre(s, mean, E, BLOCK), E)
    centred = _centre(s, mean, E, BLOCK)
    square = tl.zeros_like(s[0])
    for i in tl.static_range(len(s)):
        square += centred[i] * centred[i]
    rstd = tl.rsqrt(tl.sum(square, axis=1, keep_dims=True) / E + eps)
    return mean, rstd, centred


@triton.jit
def _mean(s, E: tl.constexpr):
    total = s[0]
    for i in tl.static_range(1, len(s)):
        total += s[i]
    return tl.sum(total, axis=1, keep_dims=True) / E


@triton.jit
def _centre(s, mean, E: tl.constexpr, BLOCK: tl.constexpr):
    centred = ()
    for i in tl.static_range(len(s)):
        c = s[i] - mean
        if (i + 1) * BLOCK > E:
            c = tl.where(column_indices(i, BLOCK) < E, c, 0.0)
        centred += (c,)
    return centred


@triton.jit
def store_row_stats(MEAN, RSTD, mean, rstd, row, N):
    tl.store(MEAN + row, mean, mask=row < N)
    tl.store(RSTD + row, rstd, mask=row < N)


@triton.jit
def affine(xhat, GAMMA, BETA, row, col, E: tl.constexpr):
    """Returns xhat * gamma + beta of one column block."""
    y = xhat * load_parameter(GAMMA, row, col, E)
    if BETA is not None:
        y += load_parameter(BETA, row, col, E)
    return y


@triton.jit
def gradient_means(dy, xhat, gamma, E: tl.constexpr):
    """Returns mean(g) and mean(g * xhat), (ROWS, 1), with g = dy * gamma: the two row sums of the derivative."""
    total = tl.zeros_like(dy[0])
    product = total
    for i in tl.static_range(len(dy)):
        total += dy[i] * gamma[i]
        product += dy[i] * gamma[i] * xhat[i]
    return tl.sum(total, axis=1, keep_dims=True) / E, tl.sum(product, axis=1, keep_dims=True) / E


@triton.jit
def store_partial(PARTIALS, i: tl.constexpr, blocks, E: tl.constexpr):
    """Writes PARTIALS[i, program] = the sum over the program's rows; PARTIALS is (sums, num_partials, E)."""
    at = PARTIALS + (i * tl.num_programs(0) + tl.program_id(0)) * E
    for c in tl.static_range(len(blocks)):
        col = c * blocks[c].shape[1] + tl.arange(0, blocks[c].shape[1])
        tl.store(at + col, tl.sum(blocks[c], axis=0), mask=col < E)


@triton.jit(do_not_specialize=["P"])
def _sum_partials(
    PARTIALS, OUT0, OUT1, OUT2, P, E: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr
):  # fmt: skip
    which = tl.program_id(1)
    col = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    inside = col < E
    total = tl.zeros((BLOCK_P, BLOCK_E), tl.float32)
    for first in range(0, P, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)[:, None]
        total += tl.load(PARTIALS + (which * P + p) * E + col[None, :], mask=(p < P) & inside[None, :], other=0.0)
    out = tl.sum(total, axis=0)
    if OUT0 is not None:
        tl.store(OUT0 + col, out, mask=inside & (which == 0))
    if OUT1 is not None:
        tl.store(OUT1 + col, out, mask=inside & (which == 1))
    if OUT2 is not None:
        tl.store(OUT2 + col, out, mask=inside & (which == 2))


def sum_partials(partials: Tensor, *outs: Tensor | None) -> None:
    """Writes outs[i] (E,) = the sum of partials[i] over its rows; partials is fp32 (1 to 3, num_partials, E)."""
    sums, num_partials, columns = partials.shape
    outs += (None,) * (3 - len(outs))
    grid = (triton.cdiv(columns, 16), sums)
    _sum_partials[grid](partials, *outs, num_partials, E=columns, BLOCK_P=128, BLOCK_E=16, num_warps=4)


def launch_rows(kernel, x: Tensor, *arguments, **constants) -> None:
    """Launches `kernel` with one program per ROWS rows of x (N, E), and the tile for the shape of x."""
    n, columns = x.shape

    def run(tile):
        kernel[(triton.cdiv(n, tile["ROWS"]),)](*arguments, **constants, **tile)

    candidates = (row_tile(columns, warps) for warps in (1, 2, 8))
    autotune.launch(
        run, row_tile(columns, warps=4), lambda: (_shape_class(kernel, x, arguments, constants), candidates)
    )


def launch_loop(kernel, x: Tensor, num_partials: int, *arguments, **constants) -> None:
    """Launches `kernel` with one program per partial sum; each loops over tiles of rows of x (N, E)."""

    def run(tile):
        kernel[(num_partials,)](*arguments, **constants, **tile)

    candidates = (loop_tile(x, warps) for warps in (1, 4, 8))
    autotune.launch(run, loop_tile(x, warps=2), lambda: (_shape_class(kernel, x, arguments, constants), candidates))


def _shape_class(kernel, x: Tensor, arguments, constants) -> tuple:
    absent = tuple(argument is None for argument in arguments)
    name = f"{kernel.fn.__module__}.{kernel.fn.__name__}"
    return name, x.dtype, triton.next_power_of_2(x.shape[0]), x.shape[1], absent, *constants.values()


def row_tile(columns: int, warps: int) -> autotune.Tile:
    """Returns the tile of a program of at least `warps` warps that holds whole rows of `columns` elements."""
    if columns > MAX_COLUMNS:
        raise ValueError(f"the Triton kernels take rows of at most {MAX_COLUMNS} elements, got {columns}")
    block = max(
        16,
        min(COLUMNS_PER_WARP, triton.next_power_of_2(columns)),
        triton.next_power_of_2(triton.cdiv(columns, MAX_BLOCKS)),
    )
    warps = max(warps, block // COLUMNS_PER_WARP)
    return {
        "E": columns,
        "BLOCK": block,
        "NUM_BLOCKS": triton.cdiv(columns, block),
        "ROWS": warps * COLUMNS_PER_WARP // block,
        "num_warps": warps,
    }


def loop_tile(x: Tensor, warps: int) -> autotune.Tile:
    """Returns the tile of a kernel that loops over rows of x (N, E), with STAGES, its number of pipeline stages.

    3 stages load two tiles ahead. Rows of twice as many bytes (fp32, or more than 4096 columns) load one tile ahead.
    The longest rows load none ahead: each of their 512 threads has 128 registers, too few for more addresses.
    """
    tile = row_tile(x.shape[1], warps)
    longest = tile["num_warps"] == 16
    return tile | {"STAGES": 1 if longest else 3 if x.element_size() == 2 and x.shape[1] <= 4096 else 2}
