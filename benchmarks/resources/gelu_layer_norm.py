"""Launches of kernels/gelu_layer_norm.py: the masked-LM heads of BERT-base (768) and BERT-large (1024)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.resources import BF16, FP32, empty
from fastlm.kernels.gelu_layer_norm import gelu_layer_norm_backward, gelu_layer_norm_forward

ROWS, PROGRAMS = 4915, 4 * 132


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    for columns, dtype, tanh in itertools.product((768, 1024), (BF16, FP32), (True, False)):
        name = f"{ROWS}x{columns} {'bf16' if dtype == BF16 else 'fp32'} {'tanh' if tanh else 'erf'}"
        yield name, partial(_gelu_layer_norm, columns, dtype, tanh)


def _gelu_layer_norm(columns: int, dtype: torch.dtype, tanh: bool) -> None:
    rows = empty(ROWS, columns, dtype=dtype)
    vector, statistic = empty(columns, dtype=FP32), empty(ROWS, dtype=FP32)
    gelu_layer_norm_forward(rows, vector, vector, vector, rows, statistic, statistic, tanh, 1e-12)
    gelu_layer_norm_backward(
        rows, rows, vector, statistic, statistic, vector, rows, vector, vector, vector, tanh,
        empty(3, PROGRAMS, columns, dtype=FP32),
    )  # fmt: skip
