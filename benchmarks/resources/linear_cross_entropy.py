"""Launches of kernels/linear_cross_entropy.py: the vocabularies of GPT-1 (40478) and BERT (30522), and two classes.

Rows are padded to a multiple of 64, as in linear_cross_entropy, or not, as in cross_entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.resources import BF16, FP32, empty
from fastlm.kernels.linear_cross_entropy import cross_entropy_rows

ROWS = 4096


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    for vocabulary in (40478, 30522, 2):
        for dtype, name in ((BF16, "bf16"), (FP32, "fp32")):
            yield f"{ROWS}x{vocabulary} {name}", partial(_rows, vocabulary, dtype)
    yield f"{ROWS}x40478 bf16 smoothed", partial(_rows, 40478, BF16, smoothing=0.1)
    yield f"{ROWS}x40478 bf16 no gradient", partial(_rows, 40478, BF16, need_gradient=False)
    yield f"{ROWS}x40478 bf16 not padded", partial(_rows, 40478, BF16, padded=False)


def _rows(
    vocabulary: int, dtype: torch.dtype, smoothing: float = 0.0, need_gradient: bool = True, padded: bool = True
) -> None:
    logits = empty(ROWS, -(-vocabulary // 64) * 64 if padded else vocabulary, dtype=dtype)
    dlogits = (logits if padded else torch.empty_like(logits)) if need_gradient else None
    targets, row = empty(ROWS, dtype=torch.int64), empty(ROWS, dtype=FP32)
    cross_entropy_rows(logits, dlogits, targets, row, row, row, vocabulary, -100, smoothing, 1e-4)
