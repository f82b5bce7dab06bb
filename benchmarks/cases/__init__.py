"""The cases, one file per op, in the order in which they run."""

from __future__ import annotations

import itertools
from dataclasses import replace

from benchmarks.case import Case
from benchmarks.cases import (
    adamw,
    attention,
    bias_gelu,
    cross_entropy,
    embedding_layer_norm,
    gelu_layer_norm,
    layer_norm,
    layer_norm_gelu,
    linear_cross_entropy,
)
from benchmarks.grid import Grid

FILES = (
    layer_norm,
    gelu_layer_norm,
    layer_norm_gelu,
    bias_gelu,
    embedding_layer_norm,
    attention,
    linear_cross_entropy,
    cross_entropy,
    adamw,
)


def cases(grid: Grid, ops: list[str] | None = None) -> list[Case]:
    """Returns the cases of `ops`, or of all ops. Raises ValueError if an op has no cases.

    The papers' shapes come first, one case of each op in turn, so that a run that is cut short has measured every op.
    """
    papers, every = (_in_turn(g) for g in (replace(grid, sweeps=False), grid))
    found = papers + [case for case in every if case not in papers]
    known = sorted({case.op for case in found})
    unknown = sorted(set(ops or []) - set(known))
    if unknown:
        raise ValueError(f"there are no cases of {', '.join(unknown)}: --op takes {', '.join(known)}")
    return [case for case in found if not ops or case.op in ops]


def _in_turn(grid: Grid) -> list[Case]:
    by_op: dict[str, list[Case]] = {}
    for file in FILES:
        for case in file.cases(grid):
            by_op.setdefault(case.op, []).append(case)
    rounds = itertools.zip_longest(*by_op.values())
    return [case for turn in rounds for case in turn if case is not None]
