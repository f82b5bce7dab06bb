"""cross_entropy: logits of the papers' vocabularies, and of classifiers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastlm
from benchmarks.case import Case, Inputs, Peer, Run, package, randn
from benchmarks.grid import Grid
from fastlm.ops._cost import Cost


@dataclass(frozen=True)
class CrossEntropy(Case):
    """Measures the loss of each row: the error of a mean, one number, would be chance."""

    op = "cross_entropy"
    rows: int = 0
    vocabulary: int = 0

    def parameters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("rows", "vocabulary")}

    def inputs(self, generator: torch.Generator) -> Inputs:
        size = {"size": (self.rows,), "generator": generator, "device": generator.device}
        return {
            "logits": randn(generator, self.rows, self.vocabulary),
            "targets": torch.randint(self.vocabulary, **size),
        }

    def output_shape(self, t: Inputs) -> tuple[int, ...]:
        return (self.rows,)

    def naive(self, t: Inputs, mask: Tensor | None) -> Tensor:
        return F.cross_entropy(t["logits"], t["targets"], reduction="none")

    def ours(self, t: Inputs, backend: str) -> Tensor:
        return fastlm.cross_entropy(t["logits"], t["targets"], reduction="none", backend=backend)

    def cost(self, dtype: torch.dtype) -> Cost:
        return self.spec.cost(self.rows, self.vocabulary, dtype.itemsize)

    def peers(self) -> list[Peer]:
        return [*super().peers(), Peer("quack", _quack)]


def _quack(t: Inputs) -> Run:
    function = package("quack.cross_entropy").cross_entropy
    return lambda t: function(t["logits"], t["targets"], reduction="none")


def cases(grid: Grid) -> Iterator[Case]:
    """Yields GPT-1's vocabulary and BERT's with the rows of an eighth of a batch, whose logits fit every GPU."""
    rows = 512 if grid.small else grid.tokens // 8
    for name, vocabulary in (("gpt1", 40478), ("bert", 30522)):
        vocabulary = vocabulary // 10 if grid.small else vocabulary
        yield CrossEntropy(f"{name} {rows} x {vocabulary}", rows=rows, vocabulary=vocabulary)
