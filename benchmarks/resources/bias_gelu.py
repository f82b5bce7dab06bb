"""Launches of kernels/bias_gelu.py: the MLP widths of BERT-base and GPT-1 (3072) and BERT-large (4096)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.resources import BF16, FP32, empty
from fastlm.kernels.bias_gelu import bias_gelu_backward, bias_gelu_forward

ROWS, PROGRAMS = 32768, 4 * 132


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    for columns, dtype, tanh in itertools.product((3072, 4096), (BF16, FP32), (True, False)):
        name = f"{ROWS}x{columns} {'bf16' if dtype == BF16 else 'fp32'} {'tanh' if tanh else 'erf'}"
        yield name, partial(_bias_gelu, columns, dtype, tanh)


def _bias_gelu(columns: int, dtype: torch.dtype, tanh: bool) -> None:
    rows, bias = empty(ROWS, columns, dtype=dtype), empty(columns, dtype=FP32)
    bias_gelu_forward(rows, bias, rows, tanh)
    bias_gelu_backward(rows, rows, bias, rows, bias, tanh, empty(1, PROGRAMS, columns, dtype=FP32))
