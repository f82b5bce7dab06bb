"""layer_norm: LN(x), and add_layer_norm: LN(residual + dropout(x + bias))."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastlm
from benchmarks.case import Case, Inputs, Peer, Run, apply_mask, package
from benchmarks.grid import Grid
from benchmarks.rows import EPS, Rows
from fastlm.dropout import row_mask
from fastlm.ops._cost import Cost


@dataclass(frozen=True)
class LayerNorm(Rows):
    op = "layer_norm"

    def inputs(self, generator: torch.Generator) -> Inputs:
        return {"x": self.activations(generator)} | self.vectors(generator, "gamma", "beta")

    def naive(self, t: Inputs, mask: Tensor | None) -> Tensor:
        return F.layer_norm(t["x"], t["x"].shape[-1:], t["gamma"], t["beta"], EPS)

    def ours(self, t: Inputs, backend: str) -> Tensor:
        return fastlm.layer_norm(t["x"], t["gamma"], t["beta"], eps=EPS, backend=backend)

    def cost(self, dtype: torch.dtype) -> Cost:
        return self.spec.cost(self.rows, self.columns, dtype.itemsize)

    def peers(self) -> list[Peer]:
        return [*super().peers(), Peer("liger", _liger), Peer("quack", _quack)]


def _liger(t: Inputs) -> Run:
    function = package("liger_kernel.ops.layer_norm").LigerLayerNormFunction
    return lambda t: function.apply(t["x"], t["gamma"], t["beta"], EPS)


def _quack(t: Inputs) -> Run:
    module = package("quack.rmsnorm")

    class LayerNormOfQuack(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
            gamma32, beta32 = gamma.float(), beta.float()  # QuACK takes no other dtype
            y, rstd, mean = module.layernorm_fwd(x, gamma32, beta32, EPS, return_rstd=True, return_mean=True)
            ctx.save_for_backward(x, gamma32, rstd, mean)
            return y

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
            x, gamma, rstd, mean = ctx.saved_tensors
            dx, dgamma, dbeta = module.layernorm_bwd(x, gamma, dy, rstd, mean)
            return dx, dgamma.to(x.dtype), dbeta.to(x.dtype)

    return lambda t: LayerNormOfQuack.apply(t["x"], t["gamma"], t["beta"])


@dataclass(frozen=True)
class AddLayerNorm(Rows):
    op = "add_layer_norm"

    def inputs(self, generator: torch.Generator) -> Inputs:
        pair = {name: self.activations(generator) for name in ("x", "residual")}
        seed = torch.tensor([20260], device=generator.device)
        return pair | self.vectors(generator, "bias", "gamma", "beta") | {"seed": seed}

    def naive(self, t: Inputs, mask: Tensor | None) -> Tensor:
        s = t["residual"] + apply_mask(t["x"] + t["bias"], mask, self.keep)
        return F.layer_norm(s, s.shape[-1:], t["gamma"], t["beta"], EPS)

    def eager(self, t: Inputs) -> Tensor:
        s = t["residual"] + F.dropout(t["x"] + t["bias"], self.dropout_p)
        return F.layer_norm(s, s.shape[-1:], t["gamma"], t["beta"], EPS)

    def ours(self, t: Inputs, backend: str) -> Tensor:
        dropout = {"dropout_p": self.dropout_p, "seed": t["seed"]}
        vectors = {"gamma": t["gamma"], "beta": t["beta"], "bias": t["bias"]}
        return fastlm.add_layer_norm(t["x"], t["residual"], **vectors, **dropout, eps=EPS, backend=backend)

    def mask(self, t: Inputs) -> Tensor | None:
        return row_mask(t["seed"], self.rows, self.columns, self.keep) if self.dropout_p else None

    def probe(self, t: Inputs) -> Inputs:
        """Returns x = 1 and residual = bias = beta = 0: each row then has two values, and LN makes the kept one
        positive."""
        zeros = {name: torch.zeros_like(t[name]) for name in ("residual", "bias", "beta")}
        return t | zeros | {name: torch.ones_like(t[name]) for name in ("x", "gamma")}

    def kept(self, t: Inputs, out: Tensor) -> Tensor:
        return out > 0

    def cost(self, dtype: torch.dtype) -> Cost:
        return self.spec.cost(self.rows, self.columns, dtype.itemsize, dropout=self.dropout_p > 0)


def cases(grid: Grid) -> Iterator[Case]:
    """Yields the papers' widths, then others: add_layer_norm with and without dropout, then layer_norm."""
    for op in (AddLayerNorm, LayerNorm):
        for columns in grid.widths(papers=(768, 1024), sweep=(512, 2048, 4096)):
            for p in (0.1, 0.0) if op is AddLayerNorm else (0.0,):
                yield op(f"{grid.tokens} x {columns}", p, rows=grid.tokens, columns=columns)
