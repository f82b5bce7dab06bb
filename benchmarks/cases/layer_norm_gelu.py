"""layer_norm_gelu: GELU(LN(x))."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import fastlm
from benchmarks.case import Case, Inputs
from benchmarks.grid import Grid
from benchmarks.rows import EPS, Rows
from fastlm.ops._cost import Cost


@dataclass(frozen=True)
class LayerNormGELU(Rows):
    op = "layer_norm_gelu"

    def inputs(self, generator: torch.Generator) -> Inputs:
        return {"x": self.activations(generator)} | self.vectors(generator, "gamma", "beta")

    def naive(self, t: Inputs, mask: Tensor | None) -> Tensor:
        return F.gelu(F.layer_norm(t["x"], t["x"].shape[-1:], t["gamma"], t["beta"], EPS), approximate="tanh")

    def ours(self, t: Inputs, backend: str) -> Tensor:
        return fastlm.layer_norm_gelu(t["x"], t["gamma"], t["beta"], eps=EPS, backend=backend)

    def cost(self, dtype: torch.dtype) -> Cost:
        return self.spec.cost(self.rows, self.columns, dtype.itemsize)


def cases(grid: Grid) -> Iterator[Case]:
    """Yields the papers' widths, then others. The rows are the positions that a masked LM predicts."""
    for columns in grid.widths(papers=(768, 1024), sweep=(512, 2048, 4096)):
        yield LayerNormGELU(f"{grid.masked} x {columns}", rows=grid.masked, columns=columns)
