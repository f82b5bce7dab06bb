"""The base class for cases of ops that work row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Case, Inputs, randn

EPS = 1e-5  # the eps of layer norms


@dataclass(frozen=True)
class Rows(Case):
    """Defines a case of an op over the rows of (N, E)."""

    rows: int = 0
    columns: int = 0

    def parameters(self) -> dict[str, Any]:
        return {"rows": self.rows, "columns": self.columns, "dropout_p": self.dropout_p}

    def output_shape(self, t: Inputs) -> tuple[int, ...]:
        return (self.rows, self.columns)

    def activations(self, generator: torch.Generator) -> Tensor:
        return randn(generator, self.rows, self.columns)

    def vectors(self, generator: torch.Generator, *names: str) -> Inputs:
        """Returns vectors of E values, near 1 for gamma and near 0 for others."""
        return {n: randn(generator, self.columns, scale=0.1) + float(n == "gamma") for n in names}
