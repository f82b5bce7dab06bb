"""gelu_layer_norm: LN(GELU(x + bias)), as in BERT's masked-LM head."""

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
class GELULayerNorm(Rows):
    op = "gelu_layer_norm"

    def inputs(self, generator: torch.Generator) -> Inputs:
        return {"x": self.activations(generator)} | self.vectors(generator, "bias", "gamma", "beta")

    def naive(self, t: Inputs, mask: Tensor | None) -> Tensor:
        h = F.gelu(t["x"] + t["bias"], approximate="tanh")
        return F.layer_norm(h, h.shape[-1:], t["gamma"], t["beta"], EPS)

    def ours(self, t: Inputs, backend: str) -> Tensor:
        return fastlm.gelu_layer_norm(t["x"], t["gamma"], t["beta"], bias=t["bias"], eps=EPS, backend=backend)

    def cost(self, dtype: torch.dtype) -> Cost:
        return self.spec.cost(self.rows, self.columns, dtype.itemsize)


def cases(grid: Grid) -> Iterator[Case]:
    """Yields the papers' widths, then others. The masked-LM head runs only at the predicted positions, so these are the
    rows."""
    for columns in grid.widths(papers=(768, 1024), sweep=(512, 2048, 4096)):
        yield GELULayerNorm(f"{grid.masked} x {columns}", rows=grid.masked, columns=columns)
