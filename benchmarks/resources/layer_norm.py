"""Launches of kernels/layer_norm.py: the widths of BERT-base and GPT-1 (768), BERT-large (1024), and the maximum."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.resources import BF16, FP32, empty
from fastlm.dropout import LEVELS, keep_count
from fastlm.kernels.layer_norm import (
    add_layer_norm_backward,
    add_layer_norm_backward_from_output,
    add_layer_norm_forward,
    layer_norm_backward,
    layer_norm_forward,
)

ROWS, PROGRAMS = 32768, 4 * 132


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    for columns, dtype in itertools.product((768, 1024, 8192), (BF16, FP32)):
        name = f"{ROWS}x{columns} {'bf16' if dtype == BF16 else 'fp32'}"
        yield f"{name} dropout", partial(_add_layer_norm, columns, dtype, 0.1)
    yield f"{ROWS}x768 bf16", partial(_add_layer_norm, 768, BF16, 0.0)
    for columns in (768, 1024):
        yield f"{ROWS}x{columns} bf16 from y", partial(_from_output, columns)
        yield f"{ROWS}x{columns} bf16 LN alone", partial(_layer_norm, columns)


def _add_layer_norm(columns: int, dtype: torch.dtype, p: float) -> None:
    rows = empty(ROWS, columns, dtype=dtype)
    vector, statistic = empty(columns, dtype=FP32), empty(ROWS, dtype=FP32)
    keep = keep_count(p)
    seed = empty(1, dtype=torch.int64) if keep < LEVELS else None
    dx = rows if keep < LEVELS else None
    add_layer_norm_forward(
        rows, rows, vector, vector, vector, seed, seed, rows, rows, statistic, statistic, keep, 1e-5
    )  # fmt: skip
    add_layer_norm_backward(
        rows, rows, rows, statistic, statistic, vector, seed, seed, rows, dx, vector, vector, vector, keep,
        empty(3, PROGRAMS, columns, dtype=FP32),
    )  # fmt: skip


def _from_output(columns: int) -> None:
    rows, vector = empty(ROWS, columns), empty(columns, dtype=FP32)
    statistic, seed = empty(ROWS, dtype=FP32), empty(1, dtype=torch.int64)
    add_layer_norm_backward_from_output(
        rows, rows, statistic, vector, vector, seed, seed, rows, rows, vector, vector, vector, keep_count(0.1),
        empty(3, PROGRAMS, columns, dtype=FP32),
    )  # fmt: skip


def _layer_norm(columns: int) -> None:
    rows, vector, statistic = empty(ROWS, columns), empty(columns, dtype=FP32), empty(ROWS, dtype=FP32)
    layer_norm_forward(rows, vector, vector, rows, statistic, statistic, 1e-5)
    layer_norm_backward(
        rows, rows, statistic, statistic, vector, rows, vector, vector, empty(2, PROGRAMS, columns, dtype=FP32)
    )
