"""linear_cross_entropy: the LM heads of GPT-1 and BERT, then other vocabularies and widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastlm
from benchmarks.case import Case, Inputs, Peer, Run, Unavailable, leaves, package, randn
from benchmarks.grid import Grid
from fastlm.ops._cost import Cost
from fastlm.ops.linear_cross_entropy import chunk_rows

EXACT_ROWS = 4096  # rows whose float64 logits are in memory at one time


@dataclass(frozen=True)
class LinearCrossEntropy(Case):
    """Measures only forward and backward together: some implementations compute the gradients in the forward."""

    op = "linear_cross_entropy"
    products = True
    passes = ("both",)
    rows: int = 0
    columns: int = 0
    vocabulary: int = 0
    bias: bool = False

    def parameters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("rows", "columns", "vocabulary", "bias")}

    def inputs(self, generator: torch.Generator) -> Inputs:
        t = {"x": randn(generator, self.rows, self.columns)}
        t["weight"] = randn(generator, self.vocabulary, self.columns, scale=self.columns**-0.5)
        if self.bias:
            t["bias"] = randn(generator, self.vocabulary, scale=0.1)
        size = {"size": (self.rows,), "generator": generator, "device": generator.device}
        return t | {"targets": torch.randint(self.vocabulary, **size)}

    def output_shape(self, t: Inputs) -> tuple[int, ...]:
        return ()

    def naive(self, t: Inputs, mask: Tensor | None) -> Tensor:
        return F.cross_entropy(F.linear(t["x"], t["weight"], t.get("bias")), t["targets"])

    def naive_results(self, t: Inputs, mask: Tensor | None, grad: Tensor | None) -> Inputs:
        """Returns the results of `naive`, computed in blocks of EXACT_ROWS rows and summed in float64."""
        wanted = leaves(t)
        total = {f"d{name}": torch.zeros_like(x, dtype=torch.float64) for name, x in wanted.items()}
        loss = torch.zeros((), dtype=torch.float64, device=t["x"].device)
        for start in range(0, self.rows, EXACT_ROWS):
            block = slice(start, start + EXACT_ROWS)
            block_loss = self.naive(t | {"x": t["x"][block], "targets": t["targets"][block]}, mask)
            block_loss = block_loss * (t["targets"][block].numel() / self.rows)
            gradients = torch.autograd.grad(block_loss, list(wanted.values()))
            loss += block_loss.detach()
            for name, gradient in zip(wanted, gradients, strict=True):
                total[f"d{name}"] += gradient
        return {"out": loss} | {name: x.to(t["x"].dtype) for name, x in total.items()}

    def ours(self, t: Inputs, backend: str) -> Tensor:
        return fastlm.linear_cross_entropy(t["x"], t["weight"], t["targets"], bias=t.get("bias"), backend=backend)

    def cost(self, dtype: torch.dtype) -> Cost:
        return self.spec.cost(self.rows, self.columns, self.vocabulary, dtype.itemsize)

    def parts(self, t: Inputs) -> dict[str, tuple[Callable[[], Any], float]]:
        """Returns the calls that every chunk of rows needs.

        They are three products (cuBLAS or MKL), one read and one write of the logits, and the sum of dW.

        An implementation that calls the library for its products cannot be faster than the sum of these times.
        """
        rows = chunk_rows(self.rows, self.vocabulary, "cpu" if t["x"].device.type == "cpu" else "cuda")
        x, w = t["x"].detach()[:rows], t["weight"].detach()
        logits, dx, dw = x @ w.t(), torch.empty_like(x), torch.empty_like(w)
        other, total = torch.empty_like(logits), torch.zeros_like(w, dtype=torch.float32)
        each = {
            "logits": lambda: torch.mm(x, w.t(), out=logits),
            "rows": lambda: other.copy_(logits),
            "dx": lambda: torch.mm(logits, w, out=dx),
            "dw": lambda: torch.mm(logits.t(), x, out=dw),
            "sum": lambda: total.add_(dw),
        }
        return {name: (call, self.rows / rows) for name, call in each.items()}

    def peers(self) -> list[Peer]:
        others = {"torch": _torch, "liger": _liger, "cce": self._cce, "cce-whole": self._cce_whole}
        others["quack"] = self._quack
        return [*super().peers(), *(Peer(name, build) for name, build in others.items())]

    def _cce(self, t: Inputs, **options: Any) -> Run:
        if self.bias:
            raise Unavailable("takes no bias")
        function = package("cut_cross_entropy").linear_cross_entropy
        return lambda t: function(t["x"], t["weight"], t["targets"], **options)

    def _cce_whole(self, t: Inputs) -> Run:
        """Returns cce with the whole gradient. By default it skips probabilities below 2^-12, here nearly all."""
        return self._cce(t, filter_eps=None)

    def _quack(self, t: Inputs) -> Run:
        if self.bias:
            raise Unavailable("takes no bias")
        function = package("quack.linear_cross_entropy").chunked_linear_cross_entropy
        return lambda t: function(t["x"], t["weight"], t["targets"])


def _torch(t: Inputs) -> Run:
    if not hasattr(F, "linear_cross_entropy"):
        raise Unavailable(f"torch {torch.__version__} has no linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()  # in chunks; without options torch computes all logits at once
    bias = t.get("bias") is not None
    return lambda t: F.linear_cross_entropy(
        t["x"], t["weight"], t["targets"], linear_bias=t["bias"] if bias else None, options=options
    )


def _liger(t: Inputs) -> Run:
    function = package("liger_kernel.ops.fused_linear_cross_entropy").LigerFusedLinearCrossEntropyFunction
    return lambda t: function.apply(t["x"], t["weight"], t["targets"], t.get("bias"))[0]


def cases(grid: Grid) -> Iterator[Case]:
    """Yields GPT-1's head (also with V padded to a multiple of 64) and BERT's, whose rows are the predicted positions.
    Sweeps add other sizes, at a quarter of the rows."""
    if grid.small:
        yield LinearCrossEntropy("gpt1 512 x 256 x 4096", rows=512, columns=256, vocabulary=4096)
        return

    def case(name: str, rows: int, columns: int, vocabulary: int, bias: bool = False) -> Case:
        label = " ".join((name, f"{rows} x {columns} x {vocabulary}")).strip()
        return LinearCrossEntropy(label, rows=rows, columns=columns, vocabulary=vocabulary, bias=bias)

    yield case("gpt1", grid.tokens, 768, 40478)
    yield case("gpt1", grid.tokens, 768, 40512)
    yield from (case("bert", grid.masked, columns, 30522, bias=True) for columns in (768, 1024))
    if grid.sweeps:
        yield from (case("", grid.tokens // 4, 768, vocabulary) for vocabulary in (8192, 32768, 131072))
        yield from (case("", grid.tokens // 4, columns, 32768) for columns in (512, 2048, 4096))
