"""What kernels over the rows of an (N, E) array share: how rows lie in registers, and sums over all rows.

A program holds ROWS rows at a time, each as CHUNKS tiles of BLOCK columns, a tuple of (ROWS, BLOCK) blocks: three times
256 columns for E = 768, where one block, a power of two, would leave a quarter of the threads idle. 256 columns
are what one warp loads at 16 bytes a thread in fp16 or bf16, so that up to E = 768 a row belongs to one warp, its sums
need no barrier and dropout no exchange; longer rows take 2, 4, 8 or 16 warps.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastlm.kernels import autotune

WARP = 256  # columns a warp holds of a block
CHUNKS = 3  # at most: 24 values a thread, of which the backward has five kinds
LONGEST = 8192  # columns; the registers of a row's 512 threads hold no more


@triton.jit
def columns(i: tl.constexpr, BLOCK: tl.constexpr):
    """The columns of chunk i: (1, BLOCK)."""
    return i * BLOCK + tl.arange(0, BLOCK)[None, :]


@triton.jit
def rows(tile, ROWS: tl.constexpr):
    """The rows of a tile: (ROWS, 1), int64."""
    return tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]


@triton.jit
def load_rows(X, row, col, N, E: tl.constexpr):
    """X[row, col] with row (ROWS, 1) int64 and col (1, BLOCK), zeros outside of (N, E)."""
    return tl.load(X + row * E + col, mask=(row < N) & (col < E), other=0.0)


@triton.jit
def store_rows(X, value, row, col, N, E: tl.constexpr):
    tl.store(X + row * E + col, value.to(X.dtype.element_ty), mask=(row < N) & (col < E))


@triton.jit
def load_parameter(P, row, col, E: tl.constexpr):
    """P[col] for each row, in fp32. A (BLOCK,) block would have to be brought into the rows' layout afterwards."""
    col = tl.broadcast_to(col, row.shape[0], col.shape[1])
    return tl.load(P + col, mask=col < E, other=0.0).to(tl.float32)


@triton.jit
def load_parameters(P, ROWS: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr):
    """`load_parameter` of every chunk."""
    chunks = ()
    for i in tl.static_range(CHUNKS):
        chunks += (load_parameter(P, tl.arange(0, ROWS)[:, None], columns(i, BLOCK), E),)
    return chunks


@triton.jit
def zeros(ROWS: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr):
    chunks = ()
    for _ in tl.static_range(CHUNKS):
        chunks += (tl.zeros((ROWS, BLOCK), tl.float32),)
    return chunks


@triton.jit
def normalise(s, eps, E: tl.constexpr, BLOCK: tl.constexpr):
    """Mean and rstd, (ROWS, 1), of rows in chunks of fp32, zero past E, and the chunks of s - mean, zero there too.

    A sum of many values is rounded, and its mean a few units in the last place off. rstd, 10^6 in a constant row at
    BERT's eps of 1e-12, would multiply that. So the mean is corrected by the mean of what it leaves, which makes that
    of a constant row exact. It costs 2.4 instructions per element (counted for sm_90, E = 768) and no byte.
    """
    mean = _mean(s, E)
    mean += _mean(_centred(s, mean, E, BLOCK), E)
    centred = _centred(s, mean, E, BLOCK)
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
def _centred(s, mean, E: tl.constexpr, BLOCK: tl.constexpr):
    centred = ()
    for i in tl.static_range(len(s)):
        c = s[i] - mean
        if (i + 1) * BLOCK > E:
            c = tl.where(columns(i, BLOCK) < E, c, 0.0)
        centred += (c,)
    return centred


@triton.jit
def store_statistics(MEAN, RSTD, mean, rstd, row, N):
    tl.store(MEAN + row, mean, mask=row < N)
    tl.store(RSTD + row, rstd, mask=row < N)


@triton.jit
def affine(xhat, GAMMA, BETA, row, col, E: tl.constexpr):
    """xhat * gamma + beta of a chunk."""
    y = xhat * load_parameter(GAMMA, row, col, E)
    if BETA is not None:
        y += load_parameter(BETA, row, col, E)
    return y


@triton.jit
def means(dy, xhat, gamma, E: tl.constexpr):
    """mean(g) and mean(g * xhat), (ROWS, 1), of g = dy * gamma: what the derivative takes from the rest of a row."""
    total = tl.zeros_like(dy[0])
    product = total
    for i in tl.static_range(len(dy)):
        total += dy[i] * gamma[i]
        product += dy[i] * gamma[i] * xhat[i]
    return tl.sum(total, axis=1, keep_dims=True) / E, tl.sum(product, axis=1, keep_dims=True) / E


@triton.jit
def store_partial(PARTIALS, i: tl.constexpr, chunks, E: tl.constexpr):
    """PARTIALS[i, program] = the sum over rows of a program's chunks; PARTIALS is (sums, programs, E)."""
    at = PARTIALS + (i * tl.num_programs(0) + tl.program_id(0)) * E
    for c in tl.static_range(len(chunks)):
        col = c * chunks[c].shape[1] + tl.arange(0, chunks[c].shape[1])
        tl.store(at + col, tl.sum(chunks[c], axis=0), mask=col < E)


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
    """outs[i] (E,) = the sum over programs of partials[i]; partials is fp32 (1 to 3, programs, E)."""
    sums, programs, columns = partials.shape
    outs += (None,) * (3 - len(outs))
    grid = (triton.cdiv(columns, 16), sums)
    _sum_partials[grid](partials, *outs, programs, E=columns, BLOCK_P=128, BLOCK_E=16, num_warps=4)


def launch_rows(kernel, x: Tensor, *arguments, **constants) -> None:
    """`kernel` with a program for each ROWS rows of x (N, E), whose dtype and shape its tiles are for."""
    n, columns = x.shape

    def run(tile):
        kernel[(triton.cdiv(n, tile["ROWS"]),)](*arguments, **constants, **tile)

    others = (tiling(columns, warps) for warps in (1, 2, 8))
    autotune.launch(run, tiling(columns, warps=4), lambda: (_shape_class(kernel, x, arguments, constants), others))


def launch_loop(kernel, x: Tensor, programs: int, *arguments, **constants) -> None:
    """`kernel` with programs that go from tile to tile of x (N, E)."""

    def run(tile):
        kernel[(programs,)](*arguments, **constants, **tile)

    others = (loop_tiling(x, warps) for warps in (1, 4, 8))
    autotune.launch(run, loop_tiling(x, warps=2), lambda: (_shape_class(kernel, x, arguments, constants), others))


def _shape_class(kernel, x: Tensor, arguments, constants) -> tuple:
    absent = tuple(argument is None for argument in arguments)
    name = f"{kernel.fn.__module__}.{kernel.fn.__name__}"
    return name, x.dtype, triton.next_power_of_2(x.shape[0]), x.shape[1], absent, *constants.values()


def tiling(columns: int, warps: int) -> autotune.Tile:
    """The constants of a program of at least `warps` warps that holds whole rows of `columns` elements."""
    if columns > LONGEST:
        raise ValueError(f"the Triton kernels take rows of at most {LONGEST} elements, got {columns}")
    block = max(16, min(WARP, triton.next_power_of_2(columns)), triton.next_power_of_2(triton.cdiv(columns, CHUNKS)))
    warps = max(warps, block // WARP)
    return {
        "E": columns,
        "BLOCK": block,
        "CHUNKS": triton.cdiv(columns, block),
        "ROWS": warps * WARP // block,
        "num_warps": warps,
    }


def loop_tiling(x: Tensor, warps: int) -> autotune.Tile:
    """`tiling` of a backward of x (N, E), whose programs go from tile to tile, and the tiles loaded or at work at once.

    Under way beside the tile at work: two, or one where that is as many bytes. The longest rows' 512 threads have 128
    registers each, into which addresses of tiles to come no longer fit.
    """
    tile = tiling(x.shape[1], warps)
    longest = tile["num_warps"] == 16
    return tile | {"STAGES": 1 if longest else 3 if x.element_size() == 2 and x.shape[1] <= 4096 else 2}
