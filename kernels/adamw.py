"""AdamW over all parameters of a model in two launches: the sum of the gradients' squares, then the update.

    launch     reads                                 writes                   bytes per parameter: fp32    fp16, bf16
    squares    gradient                                                                              4             2
    update     parameter, gradient, both moments     parameter, moments                             28            22

Lower bound on an H100 for GPT-1's 117 million parameters in fp32: 1.25 ms, set by HBM (3.0 TB/s; computed, not
measured).

One launch serves any number n of tensors, of mixed dtypes. A table (rows, n) of int64 in device memory describes them:

    row    0              1           2             3           4            5               6
           first slice    elements    dtype code    gradient    parameter    first moment    second moment

Rows 3 to 6 hold addresses. The table of the squares ends at row 3. The host fills a table and copies it from pinned
memory, 32 n bytes for the squares and 56 n for the update, without waiting: two launches and two copies of a few KB per
step. A CUDA graph that captures them keeps the pinned memory. csrc/adamw.cu passes its table as a kernel argument,
which Triton cannot do.

A slice is SLICE elements of one tensor. P programs take the slices in turn. To find the tensor of a slice, a program
counts the tensors whose first slice is at or before it. Only the last slice of a tensor needs a mask. If every tensor
is aligned to 16 bytes, each thread loads and stores four elements at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

SLICE = 8192  # elements per slice
BLOCK = 1024  # elements of each of the four tensors in registers at a time: 4 per thread, 16 bytes in fp32
WARPS = 8
SQUARES_BLOCK = 1024  # partial sums added at a time

FLOAT32, FLOAT16, BFLOAT16 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


@triton.jit
def _find_tensor(TABLE, slice, n, TENSORS: tl.constexpr):
    """Returns the index of the tensor that holds a slice: the last tensor whose first slice is at or before it."""
    i = tl.arange(0, TENSORS)
    first = tl.load(TABLE + i, mask=i < n, other=0)
    return tl.sum(((i < n) & (first <= slice)).to(tl.int32)) - 1


@triton.jit
def _pointers(address, element_ty: tl.constexpr, start, lane, ALIGNED: tl.constexpr):
    """Returns pointers to elements start + lane of the tensor at `address`, marked as aligned if ALIGNED."""
    first_moment = address.to(tl.pointer_type(element_ty)) + start
    return (tl.multiple_of(first_moment, 16) if ALIGNED else first_moment) + lane


@triton.jit
def _load_as(address, element_ty: tl.constexpr, start, lane, remaining, ALIGNED: tl.constexpr, UNMASKED: tl.constexpr):
    pointer = _pointers(address, element_ty, start, lane, ALIGNED)
    x = tl.load(pointer) if UNMASKED else tl.load(pointer, mask=lane < remaining, other=0.0)
    return x.to(tl.float32)


@triton.jit
def _load(address, dtype, start, lane, remaining, ALIGNED: tl.constexpr, UNMASKED: tl.constexpr):
    """Loads elements start + lane of a tensor in fp32. Lanes from `remaining` on get zeros (UNMASKED: none)."""
    if dtype == FLOAT32:
        x = _load_as(address, tl.float32, start, lane, remaining, ALIGNED, UNMASKED)
    elif dtype == FLOAT16:
        x = _load_as(address, tl.float16, start, lane, remaining, ALIGNED, UNMASKED)
    else:
        x = _load_as(address, tl.bfloat16, start, lane, remaining, ALIGNED, UNMASKED)
    return x


@triton.jit
def _store_as(
    address, x, element_ty: tl.constexpr, start, lane, remaining, ALIGNED: tl.constexpr, UNMASKED: tl.constexpr
):  # fmt: skip
    pointer = _pointers(address, element_ty, start, lane, ALIGNED)
    if UNMASKED:
        tl.store(pointer, x.to(element_ty))
    else:
        tl.store(pointer, x.to(element_ty), mask=lane < remaining)


@triton.jit
def _store(address, x, dtype, start, lane, remaining, ALIGNED: tl.constexpr, UNMASKED: tl.constexpr):
    if dtype == FLOAT32:
        _store_as(address, x, tl.float32, start, lane, remaining, ALIGNED, UNMASKED)
    elif dtype == FLOAT16:
        _store_as(address, x, tl.float16, start, lane, remaining, ALIGNED, UNMASKED)
    else:
        _store_as(address, x, tl.bfloat16, start, lane, remaining, ALIGNED, UNMASKED)


@triton.jit
def _square_sum(gradient, dtype, start, elements, ALIGNED: tl.constexpr, UNMASKED: tl.constexpr, BLOCK: tl.constexpr):
    total, lane = tl.zeros((BLOCK,), tl.float32), tl.arange(0, BLOCK)
    for block in tl.range(0, elements, BLOCK):
        g = _load(gradient, dtype, start + block, lane, elements - block, ALIGNED, UNMASKED)
        total += g * g
    return total


@triton.jit(do_not_specialize=["n", "num_slices"])
def _gradient_squares(
    TABLE, OUT, n, num_slices, ALIGNED: tl.constexpr, TENSORS: tl.constexpr, SLICE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    total = tl.zeros((BLOCK,), tl.float32)
    for slice in tl.range(tl.program_id(0), num_slices, tl.num_programs(0)):
        tensor = _find_tensor(TABLE, slice, n, TENSORS)
        count, dtype = tl.load(TABLE + n + tensor), tl.load(TABLE + 2 * n + tensor)
        gradient = tl.load(TABLE + 3 * n + tensor)
        start = (slice - tl.load(TABLE + tensor)) * SLICE
        if start + SLICE <= count:
            total += _square_sum(gradient, dtype, start, SLICE, ALIGNED, True, BLOCK)
        else:
            total += _square_sum(gradient, dtype, start, (count - start).to(tl.int32), ALIGNED, False, BLOCK)
    tl.store(OUT + tl.program_id(0), tl.sum(total))


@triton.jit
def _gradient_norm(SQUARES, K, scale, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for i in tl.range(0, K, BLOCK):
        at = i + tl.arange(0, BLOCK)
        total += tl.load(SQUARES + at, mask=at < K, other=0.0)
    return scale * tl.sqrt_rn(tl.sum(total))


@triton.jit
def _update_slice(
    parameter, gradient, first_moment, second_moment, dtype, start, elements, grad_scale, decay_factor, step_size,
    inv_root_c2, one_minus_beta1, beta2, one_minus_beta2, eps, ALIGNED: tl.constexpr, UNMASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Updates one slice: p = decay_factor p - step_size m / (inv_root_c2 sqrt(v) + eps).

    m and v are the moments of grad_scale times the gradient. inv_root_c2 is 1 / sqrt(c2), and step_size is lr / c1.
    """
    lane = tl.arange(0, BLOCK)
    for block in tl.range(0, elements, BLOCK):
        at, remaining = start + block, elements - block
        p = _load(parameter, dtype, at, lane, remaining, ALIGNED, UNMASKED)
        g = _load(gradient, dtype, at, lane, remaining, ALIGNED, UNMASKED) * grad_scale
        m = _load_as(first_moment, tl.float32, at, lane, remaining, ALIGNED, UNMASKED)
        v = _load_as(second_moment, tl.float32, at, lane, remaining, ALIGNED, UNMASKED)
        m += one_minus_beta1 * (g - m)
        v = beta2 * v + one_minus_beta2 * g * g
        p = decay_factor * p - step_size * m / (tl.sqrt_rn(v) * inv_root_c2 + eps)
        _store(parameter, p, dtype, at, lane, remaining, ALIGNED, UNMASKED)
        _store_as(first_moment, m, tl.float32, at, lane, remaining, ALIGNED, UNMASKED)
        _store_as(second_moment, v, tl.float32, at, lane, remaining, ALIGNED, UNMASKED)


@triton.jit(
    do_not_specialize=["n", "num_slices", "K"],
    do_not_specialize_on_alignment=["RATES", "DECAYS", "CORRECTIONS", "SQUARES", "MAX_NORM", "SCALE", "NORM"],
)
def _adamw(
    TABLE, RATES, DECAYS, CORRECTIONS, SQUARES, MAX_NORM, SCALE, NORM, n, num_slices, K,
    one_minus_beta1, beta2, one_minus_beta2, eps,
    ALIGNED: tl.constexpr, TENSORS: tl.constexpr, SLICE: tl.constexpr, BLOCK: tl.constexpr, SQUARES_BLOCK: tl.constexpr,
):  # fmt: skip
    grad_scale = 1.0 if SCALE is None else tl.load(SCALE)
    norm = _gradient_norm(SQUARES, K, grad_scale, SQUARES_BLOCK)
    if tl.program_id(0) == 0:
        tl.store(NORM, norm)
    if MAX_NORM is not None:
        max_norm = tl.load(MAX_NORM)
        grad_scale *= tl.where(norm <= max_norm, 1.0, max_norm / norm)

    for slice in tl.range(tl.program_id(0), num_slices, tl.num_programs(0)):
        tensor = _find_tensor(TABLE, slice, n, TENSORS)
        count, dtype = tl.load(TABLE + n + tensor), tl.load(TABLE + 2 * n + tensor)
        gradient, parameter = tl.load(TABLE + 3 * n + tensor), tl.load(TABLE + 4 * n + tensor)
        first_moment, second_moment = tl.load(TABLE + 5 * n + tensor), tl.load(TABLE + 6 * n + tensor)
        start = (slice - tl.load(TABLE + tensor)) * SLICE
        step_size = tl.load(RATES + tensor)
        decay_factor, inv_root_c2 = 1.0 - step_size * tl.load(DECAYS + tensor), 1.0
        if CORRECTIONS is not None:
            step_size = step_size / tl.load(CORRECTIONS + 2 * tensor)
            inv_root_c2 = tl.rsqrt(tl.load(CORRECTIONS + 2 * tensor + 1))
        if start + SLICE <= count:
            _update_slice(
                parameter, gradient, first_moment, second_moment, dtype, start, SLICE, grad_scale, decay_factor,
                step_size, inv_root_c2, one_minus_beta1, beta2, one_minus_beta2, eps, ALIGNED, True, BLOCK,
            )  # fmt: skip
        else:
            _update_slice(
                parameter, gradient, first_moment, second_moment, dtype, start, (count - start).to(tl.int32),
                grad_scale, decay_factor, step_size, inv_root_c2, one_minus_beta1, beta2, one_minus_beta2, eps,
                ALIGNED, False, BLOCK,
            )  # fmt: skip


def gradient_squares(gradients: list[Tensor], squares: Tensor) -> None:
    """Writes squares (K,) fp32: K partial sums of the squares of all gradients, one per program."""
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
    """Writes norm () fp32, and updates parameters and moments in place.

    rates and decays (n,), corrections (n, 2), squares (K,) are fp32.
    """
    table, options = _table(gradients, parameters, first_moments, second_moments)
    _adamw[(num_programs,)](
        table, rates, decays, corrections, squares, max_norm, scale, norm, K=squares.numel(),
        one_minus_beta1=1 - beta1, beta2=beta2, one_minus_beta2=1 - beta2, eps=eps,
        SQUARES_BLOCK=SQUARES_BLOCK, **options,
    )  # fmt: skip


def _table(*lists: Sequence[Tensor]) -> tuple[Tensor, dict[str, int]]:
    """Returns the table of the tensors, on their device, and the kernel arguments that depend on it."""
    tensors, device = lists[0], lists[0][0].device
    if triton.knobs.runtime.interpret and device.type != "cpu":
        raise ValueError(f"adamw: Triton's interpreter cannot follow addresses of tensors on {device}")
    first_slices, num_slices = [], 0
    for x in tensors:
        first_slices.append(num_slices)
        num_slices += triton.cdiv(x.numel(), SLICE)
    addresses = [[x.data_ptr() for x in each] for each in lists]
    rows = [first_slices, [x.numel() for x in tensors], [DTYPES[x.dtype] for x in tensors], *addresses]
    table = torch.tensor(rows, dtype=torch.int64, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    options = {
        "n": len(tensors),
        "num_slices": num_slices,
        "ALIGNED": all(address % 16 == 0 for each in addresses for address in each),
        "TENSORS": triton.next_power_of_2(len(tensors)),
        "SLICE": SLICE,
        "BLOCK": BLOCK,
        "num_warps": WARPS,
    }
    return table, options
