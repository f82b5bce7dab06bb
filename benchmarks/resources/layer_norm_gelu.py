"""Launches of kernels/layer_norm_gelu.py: the widths of BERT-base and GPT-1 (768) and BERT-large (1024)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.resources import BF16, FP32, empty
from fastlm.kernels.layer_norm_gelu import layer_norm_gelu_backward, layer_norm_gelu_forward

ROWS, PROGRAMS = 32768, 4 * 132


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    for columns, dtype, tanh in itertools.product((768, 1024), (BF16, FP32), (True, False)):
        name = f"{ROWS}x{columns} {'bf16' if dtype == BF16 else 'fp32'} {'tanh' if tanh else 'erf'}"
        yield name, partial(_layer_norm_gelu, columns, dtype, tanh)


def _layer_norm_gelu(columns: int, dtype: torch.dtype, tanh: bool) -> None:
    rows = empty(ROWS, columns, dtype=dtype)
    vector, statistic = empty(columns, dtype=FP32), empty(ROWS, dtype=FP32)
    layer_norm_gelu_forward(rows, vector, vector, rows, statistic, statistic, tanh, 1e-5)
    layer_norm_gelu_backward(
        rows, rows, statistic, statistic, vector, vector, rows, vector, vector, tanh,
        empty(2, PROGRAMS, columns, dtype=FP32),
    )  # fmt: skip
