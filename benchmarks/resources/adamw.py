"""Launches of kernels/adamw.py: 150 tensors (about the number in BERT-base) and 5, aligned to 16 bytes or not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import torch

from benchmarks.resources import FP32, empty
from fastlm.kernels import adamw as kernels

PROGRAMS = 4 * 132


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    for tensors, aligned, optional in itertools.product((150, 5), (True, False), (True, False)):
        name = f"{tensors} {'aligned' if aligned else 'unaligned'} {'corrected, clipped' if optional else 'plain'}"
        yield name, partial(_adamw, tensors, aligned, optional)


def _adamw(tensors: int, aligned: bool, optional: bool) -> None:
    x, each = [empty(768, 768, dtype=FP32)] * tensors, empty(tensors, dtype=FP32)
    squares, scalar = empty(PROGRAMS, dtype=FP32), empty(dtype=FP32)
    corrections = empty(tensors, 2, dtype=FP32) if optional else None
    optional_scalar = scalar if optional else None
    with mock.patch.object(torch.Tensor, "data_ptr", lambda self: 0 if aligned else 4):
        kernels.gradient_squares(x, squares)
        kernels.adamw(
            x, x, x, x, each, each, corrections, squares, optional_scalar, optional_scalar, scalar, 0.9, 0.999, 1e-8,
            PROGRAMS,
        )  # fmt: skip
