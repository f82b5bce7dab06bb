"""adamw: one update of all parameters of a model, clipped by the global norm. Parameters are float32 (autocast)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

import fastlm
from benchmarks.case import Case, Inputs, Peer, Run, randn
from benchmarks.grid import Grid
from fastlm.ops._cost import Cost

LR, DECAY, BETAS, EPS, MAX_NORM, STEP = 1e-4, 0.01, (0.9, 0.999), 1e-6, 1.0, 10
CORRECTIONS = tuple(1 - beta**STEP for beta in BETAS)


@dataclass(frozen=True)
class AdamW(Case):
    op = "adamw"
    passes = ("step",)
    layers: int = 0
    columns: int = 0
    vocabulary: int = 0

    def parameters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("layers", "columns", "vocabulary")}

    def dtype(self, asked: torch.dtype) -> torch.dtype:
        return torch.float32

    def shapes(self) -> list[tuple[int, ...]]:
        """Returns the shapes of a transformer's parameters: embeddings, then each layer's matrices and vectors."""
        e = self.columns
        layer = [(3 * e, e), (3 * e,), (e, e), (e,), (e,), (e,), (4 * e, e), (4 * e,), (e, 4 * e), (e,), (e,), (e,)]
        return [(self.vocabulary, e), (512, e), *layer * self.layers]

    def inputs(self, generator: torch.Generator) -> Inputs:
        def each(name: str, scale: float) -> Inputs:
            return {f"{name}{i}": randn(generator, *shape, scale=scale) for i, shape in enumerate(self.shapes())}

        second = {name: 1e-6 + x.square() for name, x in each("v", 0.01).items()}
        return each("p", 0.02) | each("g", 0.01) | each("m", 0.01) | second

    def lists(self, t: Inputs) -> tuple[list[Tensor], ...]:
        """Returns four lists: parameters, gradients, first moments and second moments."""
        return tuple([t[f"{name}{i}"].detach() for i in range(len(self.shapes()))] for name in "pgmv")

    def output_shape(self, t: Inputs) -> tuple[int, ...]:
        return ()

    def results(self, run: Run, t: Inputs, grad: Tensor | None) -> Inputs:
        """Returns the gradients' norm, and the parameters and moments, which were updated in place."""
        return {"out": run(t)} | {name: x.detach() for name, x in t.items() if name[0] in "pmv"}

    def naive(self, t: Inputs, mask: Tensor | None) -> Tensor:
        parameters, gradients, first, second = self.lists(t)
        norm = torch.nn.utils.get_total_norm(gradients)
        factor = (MAX_NORM / norm).clamp(max=1.0)
        for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
            g = g * factor
            m.mul_(BETAS[0]).add_(g, alpha=1 - BETAS[0])
            v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            update = m / CORRECTIONS[0] / ((v / CORRECTIONS[1]).sqrt() + EPS)
            p.mul_(1 - LR * DECAY).sub_(update, alpha=LR)
        return norm

    def ours(self, t: Inputs, backend: str) -> Tensor:
        lists = self.lists(t)
        values = _device_values(len(lists[0]), lists[0][0].dtype, lists[0][0].device)
        return fastlm.adamw(*lists, **values, betas=BETAS, eps=EPS, backend=backend)

    def peers(self) -> list[Peer]:
        return [
            Peer("eager", lambda t: self.eager),
            Peer("foreach", lambda t: self._torch(t, foreach=True)),
            Peer("fused", lambda t: self._torch(t, fused=True)),
        ]

    def _torch(self, t: Inputs, **form: bool) -> Run:
        """Returns the calls that clip_grad_norm_ and torch.optim.AdamW make."""
        device = t["p0"].device
        steps = [torch.tensor(STEP - 1.0, device=device) for _ in self.shapes()]

        def run(t: Inputs) -> Tensor:
            parameters, gradients, first, second = self.lists(t)
            norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
            torch._foreach_mul_(gradients, (MAX_NORM / (norm + 1e-6)).clamp(max=1.0))
            rates = {"beta1": BETAS[0], "beta2": BETAS[1], "lr": LR, "weight_decay": DECAY, "eps": EPS}
            state = (parameters, gradients, first, second, [], steps)
            torch_adamw(*state, **form, **rates, amsgrad=False, maximize=False)
            return norm

        return run

    def cost(self, dtype: torch.dtype) -> Cost:
        return self.spec.cost(sum(torch.Size(shape).numel() for shape in self.shapes()), dtype.itemsize)


@functools.cache
def _device_values(count: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Returns the rates, decays, corrections and max_norm as tensors. An optimizer writes them once per step, which is
    not timed here."""
    given = {"rates": [LR] * count, "decays": [DECAY] * count, "corrections": [CORRECTIONS] * count}
    return {name: torch.tensor(x, dtype=dtype, device=device) for name, x in (given | {"max_norm": MAX_NORM}).items()}


def cases(grid: Grid) -> Iterator[Case]:
    """Yields the parameters of the papers' models; on a CPU, those of a model with one layer."""
    if grid.small or grid.tokens < 32768:
        yield AdamW("1 x 256, V 2048", layers=1, columns=256, vocabulary=2048)
        return
    yield AdamW("bert_base", layers=12, columns=768, vocabulary=30522)
    yield AdamW("gpt1", layers=12, columns=768, vocabulary=40478)
