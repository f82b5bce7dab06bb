"""Launches of kernels/embedding_layer_norm.py: BERT's three tables with layer norm, GPT-1's two without."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.resources import BF16, FP32, empty
from fastlm.dropout import keep_count
from fastlm.kernels.embedding_layer_norm import (
    embedding_gradient,
    embedding_layer_norm_backward,
    embedding_layer_norm_forward,
)

TOKENS, SEQUENCE, PROGRAMS, RUN = 32768, 512, 4 * 132, 32
KEEP = keep_count(0.1)


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """Yields bf16 activations with bf16 tables, and with fp32 tables (autocast)."""
    for columns, table in itertools.product((768, 1024), (BF16, FP32)):
        dtype = "bf16" if table == BF16 else "fp32"
        yield f"BERT {TOKENS}x{columns} {dtype} tables", partial(_bert, columns, table)
        yield f"GPT-1 {TOKENS}x{columns} {dtype} tables", partial(_gpt1, columns, table)
    for rows in (30522, 2):
        yield f"table {rows}x768", partial(_gradient, rows, 768)


def _bert(columns: int, table: torch.dtype) -> None:
    word, position, segment = (empty(rows, columns, dtype=table) for rows in (30522, SEQUENCE, 2))
    y, vector, statistic = empty(TOKENS, columns), empty(columns, dtype=FP32), empty(TOKENS, dtype=FP32)
    ids, seed = empty(TOKENS, dtype=torch.int64), empty(1, dtype=torch.int64)
    embedding_layer_norm_forward(
        ids, word, position, None, segment, ids, vector, vector, seed, seed, y, y, statistic, statistic, SEQUENCE,
        KEEP, 1e-12,
    )  # fmt: skip
    embedding_layer_norm_backward(
        y, y, statistic, statistic, vector, seed, seed, y, vector, vector, KEEP, empty(2, PROGRAMS, columns, dtype=FP32)
    )  # fmt: skip


def _gpt1(columns: int, table: torch.dtype) -> None:
    word, position = (empty(rows, columns, dtype=table) for rows in (40478, SEQUENCE))
    ids, seed, y = empty(TOKENS, dtype=torch.int64), empty(1, dtype=torch.int64), empty(TOKENS, columns)
    embedding_layer_norm_forward(
        ids, word, position, None, None, None, None, None, seed, seed, y, None, None, None, SEQUENCE, KEEP, 1e-5
    )  # fmt: skip
    embedding_layer_norm_backward(y, None, None, None, None, seed, seed, y, None, None, KEEP, None)


def _gradient(rows: int, columns: int) -> None:
    ids, order = empty(TOKENS, dtype=torch.int32), empty(TOKENS, dtype=torch.int64)
    starts = empty(rows + 1, dtype=torch.int64)
    runs, out = empty(TOKENS // RUN, columns, dtype=FP32), empty(rows, columns, dtype=FP32)
    embedding_gradient(empty(TOKENS, columns), ids, order, starts, runs, out, RUN)
