"""embedding_layer_norm: BERT's (three tables, layer norm, dropout) and GPT-1's (two tables, dropout)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastlm
from benchmarks.case import Case, Inputs, apply_mask, randn
from benchmarks.grid import Grid
from fastlm.dropout import row_mask
from fastlm.ops._cost import Cost


@dataclass(frozen=True)
class EmbeddingLayerNorm(Case):
    op = "embedding_layer_norm"
    batch: int = 0
    length: int = 0
    columns: int = 0
    vocabulary: int = 0
    bert: bool = True  # True: with segments and layer norm; False: GPT-1, without both

    def parameters(self) -> dict[str, Any]:
        names = ("batch", "length", "columns", "vocabulary", "bert", "dropout_p")
        return {name: getattr(self, name) for name in names}

    def inputs(self, generator: torch.Generator) -> Inputs:
        def ids(high: int) -> Tensor:
            return torch.randint(high, (self.batch, self.length), generator=generator, device=generator.device)

        t = {"tokens": ids(self.vocabulary), "seed": torch.tensor([20261], device=generator.device)}
        t |= {"word": randn(generator, self.vocabulary, self.columns), "position": randn(generator, 512, self.columns)}
        if self.bert:
            t |= {"segment": randn(generator, 2, self.columns), "segments": ids(2)}
            t |= {"gamma": randn(generator, self.columns, scale=0.1) + 1, "beta": randn(generator, self.columns)}
        return t

    def output_shape(self, t: Inputs) -> tuple[int, ...]:
        return (self.batch, self.length, self.columns)

    def _before_dropout(self, t: Inputs) -> Tensor:
        s = F.embedding(t["tokens"], t["word"]) + t["position"][: self.length]
        if not self.bert:
            return s
        s = s + F.embedding(t["segments"], t["segment"])
        return F.layer_norm(s, s.shape[-1:], t["gamma"], t["beta"], 1e-12)

    def naive(self, t: Inputs, mask: Tensor | None) -> Tensor:
        return apply_mask(self._before_dropout(t), mask, self.keep)

    def eager(self, t: Inputs) -> Tensor:
        return F.dropout(self._before_dropout(t), self.dropout_p)

    def ours(self, t: Inputs, backend: str) -> Tensor:
        names = ("position", *(("segment", "segments", "gamma", "beta") if self.bert else ()))
        options = {name: t[name] for name in names} | {"dropout_p": self.dropout_p, "seed": t["seed"], "eps": 1e-12}
        return fastlm.embedding_layer_norm(t["tokens"], t["word"], **options, backend=backend)

    def mask(self, t: Inputs) -> Tensor | None:
        if not self.dropout_p:
            return None
        mask = row_mask(t["seed"], self.batch * self.length, self.columns, self.keep)
        return mask.view(self.batch, self.length, self.columns)

    def probe(self, t: Inputs) -> Inputs:
        """Returns inputs for which the output is 1 before dropout, so that dropped elements are 0."""
        constants = {"word": 1.0, "position": 0.0, "segment": 0.0, "gamma": 0.0, "beta": 1.0}
        return t | {name: torch.full_like(t[name], value) for name, value in constants.items() if name in t}

    def kept(self, t: Inputs, out: Tensor) -> Tensor:
        return out != 0

    def cost(self, dtype: torch.dtype) -> Cost:
        sizes = (self.batch * self.length, self.columns, self.vocabulary, self.length, 2 * self.bert)
        return self.spec.cost(*sizes, dtype.itemsize, dtype.itemsize, layer_norm=self.bert)


def cases(grid: Grid) -> Iterator[Case]:
    """Yields BERT-base and BERT-large at S = 512 and 128, then GPT-1."""
    for length in (128,) if grid.small else (512, 128):
        for columns in grid.widths(papers=(768, 1024), sweep=()):
            batch, vocabulary = grid.tokens // length, 2048 if grid.small else 30522
            shape = {"batch": batch, "length": length, "columns": columns, "vocabulary": vocabulary}
            yield EmbeddingLayerNorm(f"bert {batch} x {length} x {columns}", 0.1, **shape)
    if not grid.small:
        shape = {"batch": grid.tokens // 512, "length": 512, "columns": 768, "vocabulary": 40478, "bert": False}
        yield EmbeddingLayerNorm(f"gpt1 {grid.tokens // 512} x 512 x 768", 0.1, **shape)
