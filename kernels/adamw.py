"""AdamW over all parameters of a model: the sum of the gradients' squares, then the update, one launch each.

Bytes per parameter in fp32: the squares read the gradient, 4; the update reads parameter, gradient and both moments and
writes all but the gradient, 28. In fp16 or bf16 2 and 22. For GPT-1's 117 million parameters in fp32 the lower bound on
an H100 is 1.25 ms, set by HBM (3.0 TB/s; computed, not measured).

One launch serves any number of tensors, of mixed dtypes. A table in device memory says where they lie:

    TABLE (rows, n) int64      0 first slice | 1 elements | 2 dtype | 3 gradient | 4 parameter | 5, 6 moments

(the squares' table ends at row 3). It is made on the host and copied from pinned memory, 32 n bytes for the squares and
56 n for the update, and nothing waits: two launches and two copies of a few KB per step. A CUDA graph that captures
them keeps the pinned memory. csrc/adamw.cu passes its table as the kernel's argument instead, which Triton cannot.

A slice is SLICE elements of one tensor. P programs take the slices in turn; each finds a slice's tensor by counting
the first slices up to it. The last slice of a tensor is masked; all others are loaded and stored without a mask and,
where every tensor is aligned to 16 bytes, four elements per thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

SLICE = 8192  # elements of a tensor that a program takes in a turn
BLOCK = 1024  # elements in registers at a time: 4 per thread, 16 bytes in fp32, of each of four tensors
WARPS = 8
SQUARES = 1024  # partial sums added at a time

FLOAT32, FLOAT16, BFLOAT16 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


@triton.jit
def _tensor_of(TABLE, slice, n, TENSORS: tl.constexpr):
    """The index of the tensor that a slice is part of: the last one that begins at or before it."""
    i = tl.arange(0, TENSORS)
    first = tl.load(TABLE + i, mask=i < n, other=0)
    return tl.sum(((i < n) & (first <= slice)).to(tl.int32)) - 1


@triton.jit
def _pointers(address, element_ty: tl.constexpr, start, lane, ALIGNED: tl.constexpr):
    first = address.to(tl.pointer_type(element_ty)) + start
    return (tl.multiple_of(first, 16) if ALIGNED else first) + lane


@triton.jit
def _load_as(address, element_ty: tl.constexpr, start, lane, left, ALIGNED: tl.constexpr, WHOLE: tl.constexpr):
    pointer = _pointers(address, element_ty, start, lane, ALIGNED)
    x = tl.load(pointer) if WHOLE else tl.load(pointer, mask=lane < left, other=0.0)
    return x.to(tl.float32)


@triton.jit
def _load(address, dtype, start, lane, left, ALIGNED: tl.constexpr, WHOLE: tl.constexpr):
    """Elements start + lane of a tensor in fp32, zeros from lane `left` on; WHOLE: there are none."""
    if dtype == FLOAT32:
        x = _load_as(address, tl.float32, start, lane, left, ALIGNED, WHOLE)
    elif dtype == FLOAT16:
        x = _load_as(address, tl.float16, start, lane, left, ALIGNED, WHOLE)
    else:
        x = _load_as(address, tl.bfloat16, start, lane, left, ALIGNED, WHOLE)
    return x


@triton.jit
def _store_as(address, x, element_ty: tl.constexpr, start, lane, left, ALIGNED: tl.constexpr, WHOLE: tl.constexpr):
    pointer = _pointers(address, element_ty, start, lane, ALIGNED)
    if WHOLE:
        tl.store(pointer, x.to(element_ty))
    else:
        tl.store(pointer, x.to(element_ty), mask=lane < left)


@triton.jit
def _store(address, x, dtype, start, lane, left, ALIGNED: tl.constexpr, WHOLE: tl.constexpr):
    if dtype == FLOAT32:
        _store_as(address, x, tl.float32, start, lane, left, ALIGNED, WHOLE)
    elif dtype == FLOAT16:
        _store_as(address, x, tl.float16, start, lane, left, ALIGNED, WHOLE)
    else:
        _store_as(address, x, tl.bfloat16, start, lane, left, ALIGNED, WHOLE)


@triton.jit
def _square_sum(gradient, dtype, start, elements, ALIGNED: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
    total, lane = tl.zeros((BLOCK,), tl.float32), tl.arange(0, BLOCK)
    for block in tl.range(0, elements, BLOCK):
        g = _load(gradient, dtype, start + block, lane, elements - block, ALIGNED, WHOLE)
        total += g * g
    return total


@triton.jit(do_not_specialize=["n", "slices"])
def _gradient_squares(
    TABLE, OUT, n, slices, ALIGNED: tl.constexpr, TENSORS: tl.constexpr, SLICE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    total = tl.zeros((BLOCK,), tl.float32)
    for slice in tl.range(tl.program_id(0), slices, tl.num_programs(0)):
        tensor = _tensor_of(TABLE, slice, n, TENSORS)
        count, dtype = tl.load(TABLE + n + tensor), tl.load(TABLE + 2 * n + tensor)
        gradient = tl.load(TABLE + 3 * n + tensor)
        start = (slice - tl.load(TABLE + tensor)) * SLICE
        if start + SLICE <= count:
            total += _square_sum(gradient, dtype, start, SLICE, ALIGNED, True, BLOCK)
        else:
            total += _square_sum(gradient, dtype, start, (count - start).to(tl.int32), ALIGNED, False, BLOCK)
    tl.store(OUT + tl.program_id(0), tl.sum(total))


@triton.jit
def _norm(SQUARES, K, scale, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for i in tl.range(0, K, BLOCK):
        at = i + tl.arange(0, BLOCK)
        total += tl.load(SQUARES + at, mask=at < K, other=0.0)
    return scale * tl.sqrt_rn(tl.sum(total))


@triton.jit
def _update_slice(
    parameter, gradient, first, second, dtype, start, elements, factor, kept, step, root,
    rest1, beta2, rest2, eps, ALIGNED: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """p = kept p - step m / (root sqrt(v) + eps), with the moments of factor times the gradient."""
    lane = tl.arange(0, BLOCK)
    for block in tl.range(0, elements, BLOCK):
        at, left = start + block, elements - block
        p = _load(parameter, dtype, at, lane, left, ALIGNED, WHOLE)
        g = _load(gradient, dtype, at, lane, left, ALIGNED, WHOLE) * factor
        m = _load_as(first, tl.float32, at, lane, left, ALIGNED, WHOLE)
        v = _load_as(second, tl.float32, at, lane, left, ALIGNED, WHOLE)
        m += rest1 * (g - m)
        v = beta2 * v + rest2 * g * g
        p = kept * p - step * m / (tl.sqrt_rn(v) * root + eps)
        _store(parameter, p, dtype, at, lane, left, ALIGNED, WHOLE)
        _store_as(first, m, tl.float32, at, lane, left, ALIGNED, WHOLE)
        _store_as(second, v, tl.float32, at, lane, left, ALIGNED, WHOLE)


@triton.jit(
    do_not_specialize=["n", "slices", "K"],
    do_not_specialize_on_alignment=["RATES", "DECAYS", "CORRECTIONS", "SQUARES", "MAX_NORM", "SCALE", "NORM"],
)
def _adamw(
    TABLE, RATES, DECAYS, CORRECTIONS, SQUARES, MAX_NORM, SCALE, NORM, n, slices, K, rest1, beta2, rest2, eps,
    ALIGNED: tl.constexpr, TENSORS: tl.constexpr, SLICE: tl.constexpr, BLOCK: tl.constexpr, SQUARES_BLOCK: tl.constexpr,
):  # fmt: skip
    factor = 1.0 if SCALE is None else tl.load(SCALE)
    norm = _norm(SQUARES, K, factor, SQUARES_BLOCK)
    if tl.program_id(0) == 0:
        tl.store(NORM, norm)
    if MAX_NORM is not None:
        max_norm = tl.load(MAX_NORM)
        factor *= tl.where(norm <= max_norm, 1.0, max_norm / norm)

    for slice in tl.range(tl.program_id(0), slices, tl.num_programs(0)):
        tensor = _tensor_of(TABLE, slice, n, TENSORS)
        count, dtype = tl.load(TABLE + n + tensor), tl.load(TABLE + 2 * n + tensor)
        gradient, parameter = tl.load(TABLE + 3 * n + tensor), tl.load(TABLE + 4 * n + tensor)
        first, second = tl.load(TABLE + 5 * n + tensor), tl.load(TABLE + 6 * n + tensor)
        start = (slice - tl.load(TABLE + tensor)) * SLICE
        step = tl.load(RATES + tensor)
        kept, root = 1.0 - step * tl.load(DECAYS + tensor), 1.0
        if CORRECTIONS is not None:
            step = step / tl.load(CORRECTIONS + 2 * tensor)
            root = tl.rsqrt(tl.load(CORRECTIONS + 2 * tensor + 1))
        if start + SLICE <= count:
            _update_slice(
                parameter, gradient, first, second, dtype, start, SLICE, factor, kept, step, root,
                rest1, beta2, rest2, eps, ALIGNED, True, BLOCK,
            )  # fmt: skip
        else:
            _update_slice(
                parameter, gradient, first, second, dtype, start, (count - start).to(tl.int32), factor, kept, step,
                root, rest1, beta2, rest2, eps, ALIGNED, False, BLOCK,
            )  # fmt: skip


def gradient_squares(gradients: list[Tensor], squares: Tensor) -> None:
    """squares (K,) fp32 with the sum of all gradients' squares: K partial sums, a program each."""
    table, options = _table(gradients)
    _gradient_squares[(squares.numel(),)](table, squares, **options)


def adamw(
    parameters: list[Tensor],
    gradients: list[Tensor],
    first_moments: list[Tensor],
    second_moments: list[Tensor],
    rates: Tensor,
    decays: Tensor,
    corrections: Tensor | None,
    squares: Tensor,
    max_norm: Tensor | None,
    scale: Tensor | None,
    norm: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    num_programs: int,
) -> None:
    """norm () fp32, and parameters and moments in place. rates and decays (n,), corrections (n, 2), squares (K,)."""
    table, options = _table(gradients, parameters, first_moments, second_moments)
    _adamw[(num_programs,)](
        table, rates, decays, corrections, squares, max_norm, scale, norm, K=squares.numel(),
        rest1=1 - beta1, beta2=beta2, rest2=1 - beta2, eps=eps, SQUARES_BLOCK=SQUARES, **options,
    )  # fmt: skip


def _table(*lists: Sequence[Tensor]) -> tuple[Tensor, dict[str, int]]:
    """The table of the tensors on their device, and a kernel's arguments that depend on it."""
    tensors, device = lists[0], lists[0][0].device
    if triton.knobs.runtime.interpret and device.type != "cpu":
        raise ValueError(f"adamw: Triton's interpreter cannot follow addresses of tensors on {device}")
    firsts, slices = [], 0
    for x in tensors:
        firsts.append(slices)
        slices += triton.cdiv(x.numel(), SLICE)
    addresses = [[x.data_ptr() for x in each] for each in lists]
    rows = [firsts, [x.numel() for x in tensors], [DTYPES[x.dtype] for x in tensors], *addresses]
    table = torch.tensor(rows, dtype=torch.int64, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    options = {
        "n": len(tensors),
        "slices": slices,
        "ALIGNED": all(address % 16 == 0 for each in addresses for address in each),
        "TENSORS": triton.next_power_of_2(len(tensors)),
        "SLICE": SLICE,
        "BLOCK": BLOCK,
        "num_warps": WARPS,
    }
    return table, options
