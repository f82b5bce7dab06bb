"""Rows of one sequence and head, as the kernels of attention address them: where they are, loads and stores."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _clamp(x, upper):
    return tl.maximum(0, tl.minimum(x, upper))


@triton.jit
def work_item(S, T, LENGTHS, STARTS, CU_SEQLENS):
    """Returns a program's head h, block of rows and sequence b, with seq_start, length and num_rows of the sequence.

    seq_start is the row where the sequence starts: a packed row, or one of the S padded rows. length is the number of
    valid rows, num_rows the number of rows including padding on the right. With STARTS it excludes all padding, which
    store_padding writes. The host does not check lengths and offsets on a GPU, so they are clamped to the valid range.
    """
    h, block, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    seq_start, length, num_rows = 0, S, S
    if CU_SEQLENS is not None:
        seq_start = _clamp(tl.load(CU_SEQLENS + b), T)
        length = _clamp(_clamp(tl.load(CU_SEQLENS + b + 1), T) - seq_start, S)
        num_rows = length
    if LENGTHS is not None:
        length = _clamp(tl.load(LENGTHS + b), S)
    if STARTS is not None:
        seq_start = _clamp(tl.load(STARTS + b), S)
        length = tl.minimum(length, S - seq_start)
        num_rows = length
    return h, block, b, seq_start, length, num_rows


@triton.jit
def head_pointer(X, strides, b, h, seq_start):
    """Returns the pointer to the first row of a sequence and head. strides: batch (0 for packed rows), row, head."""
    X += tl.cast(b, tl.int64) * strides[0] + tl.cast(seq_start, tl.int64) * strides[1]
    return X + tl.cast(h, tl.int64) * strides[2]


@triton.jit
def row_stat_pointers(X, first, b, h, seq_start, S, CU_SEQLENS, ROWS: tl.constexpr):
    """Returns pointers to one value per row of a head, from row `first` on. X is (B, H, S), or packed (T, H)."""
    H = tl.num_programs(0)
    row = tl.arange(0, ROWS)
    if CU_SEQLENS is None:
        return X + (tl.cast(b, tl.int64) * H + h) * S + seq_start + first + row
    else:
        return X + (tl.cast(seq_start, tl.int64) + first) * H + h + row * H


@triton.jit
def load_row_stats(X, first, end, b, h, seq_start, S, CU_SEQLENS, ROWS: tl.constexpr):
    at = row_stat_pointers(X, first, b, h, seq_start, S, CU_SEQLENS, ROWS)
    return tl.load(at, mask=tl.arange(0, ROWS) < end - first, other=0.0)


@triton.jit
def store_row_stats(X, x, first, end, b, h, seq_start, S, CU_SEQLENS):
    at = row_stat_pointers(X, first, b, h, seq_start, S, CU_SEQLENS, x.shape[0])
    tl.store(at, x, mask=tl.arange(0, x.shape[0]) < end - first)


@triton.jit
def _row_indices(ROWS: tl.constexpr, STRIDE: tl.constexpr):
    """Returns row indices (ROWS, 1): int32, or int64 if index * STRIDE can reach 2^31, as with rows of (S, B, H, D)."""
    row = tl.arange(0, ROWS)[:, None]
    return row.to(tl.int64) if ROWS * STRIDE >= 2**31 else row


@triton.jit
def load_rows(X, first, end, strides, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Loads rows [first, first + ROWS) of a head: (ROWS, BLOCK_D), zeros from row `end` on and from column D on."""
    row, d = _row_indices(ROWS, strides[1]), tl.arange(0, BLOCK_D)[None, :]
    at = X + tl.cast(first, tl.int64) * strides[1] + (row * strides[1] + d)
    return tl.load(at, mask=(row < end - first) & (d < D), other=0.0)


@triton.jit
def store_rows(X, x, first, end, strides, D: tl.constexpr):
    row, d = _row_indices(x.shape[0], strides[1]), tl.arange(0, x.shape[1])[None, :]
    at = X + tl.cast(first, tl.int64) * strides[1] + (row * strides[1] + d)
    tl.store(at, x.to(X.dtype.element_ty), mask=(row < end - first) & (d < D))


@triton.jit
def is_padding(i, seq_start, length, S):
    """Returns whether row i is one of the S padded rows, and outside the sequence."""
    return (i < S) & ((i < seq_start) | (i >= seq_start + length))


@triton.jit
def store_padding(X, strides, b, h, first, seq_start, length, S, zeros, D: tl.constexpr):
    """Stores zeros (ROWS, BLOCK_D) in those of the padded rows [first, first + ROWS) that are outside the sequence."""
    row, d = _row_indices(zeros.shape[0], strides[1]), tl.arange(0, zeros.shape[1])[None, :]
    at = head_pointer(X, strides, b, h, 0) + tl.cast(first, tl.int64) * strides[1] + (row * strides[1] + d)
    tl.store(at, zeros.to(X.dtype.element_ty), mask=is_padding(first + row, seq_start, length, S) & (d < D))
