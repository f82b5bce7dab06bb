"""bias_gelu: GELU(x + bias), where x is the output of the MLP's first product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

import fastlm
from benchmarks.case import Case, Inputs
from benchmarks.grid import Grid
from benchmarks.rows import Rows
from fastlm.ops._cost import Cost


@dataclass(frozen=True)
class BiasGELU(Rows):
    op = "bias_gelu"
    approximate: str = field(default="tanh", kw_only=True)

    @property
    def shape(self) -> str:
        return self.label if self.approximate == "tanh" else f"{self.label} erf"

    def parameters(self) -> dict:
        return super().parameters() | {"approximate": self.approximate}

    def inputs(self, generator: torch.Generator) -> Inputs:
        return {"x": self.activations(generator)} | self.vectors(generator, "bias")

    def naive(self, t: Inputs, mask: Tensor | None) -> Tensor:
        return F.gelu(t["x"] + t["bias"], approximate=self.approximate)

    def ours(self, t: Inputs, backend: str) -> Tensor:
        return fastlm.bias_gelu(t["x"], t["bias"], approximate=self.approximate, backend=backend)

    def cost(self, dtype: torch.dtype) -> Cost:
        return self.spec.cost(self.rows, self.columns, dtype.itemsize)


def cases(grid: Grid) -> Iterator[Case]:
    """Yields the MLP widths of BERT-base and BERT-large, then others; the tanh form, at 3072 also the erf form."""
    for columns in grid.widths(papers=(3072, 4096), sweep=(2048, 8192)):
        for approximate in ("tanh",) if grid.small or columns != 3072 else ("tanh", "none"):
            label = f"{grid.tokens} x {columns}"
            yield BiasGELU(label, rows=grid.tokens, columns=columns, approximate=approximate)
