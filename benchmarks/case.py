"""A case: one op at one shape. What it takes, what it should give, what it costs at least, and who else computes it."""

from __future__ import annotations

import functools
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from fastlm import backends
from fastlm.dropout import LEVELS, keep_count
from fastlm.ops import SPECS
from fastlm.ops._cost import Cost

Inputs = dict[str, Tensor]
Run = Callable[[Inputs], Tensor]


class Unavailable(Exception):
    """Why a peer takes no part in a case."""


@dataclass(frozen=True)
class Peer:
    """Another implementation. `build` gives, for inputs of one shape, a function of them, or raises Unavailable."""

    name: str
    build: Callable[[Inputs], Run]


@dataclass(frozen=True)
class Case(ABC):
    """Subclasses are one an op; `label` is what the table calls the shape."""

    op: ClassVar[str]
    passes: ClassVar[tuple[str, ...]] = ("forward", "backward", "both")
    products: ClassVar[bool] = False  # whether its operations are of the matrix units; else bytes alone bind
    label: str
    dropout_p: float = 0.0

    @property
    def shape(self) -> str:
        """The label with what varies beside the shape."""
        return f"{self.label} p={self.dropout_p:g}" if self.dropout_p else self.label

    @property
    def spec(self) -> backends.Spec:
        """The facts of the op."""
        return SPECS[self.op]

    @property
    def keep(self) -> int:
        return keep_count(self.dropout_p)

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The numbers behind the label."""

    @abstractmethod
    def inputs(self, generator: torch.Generator) -> Inputs:
        """One set of inputs, in float32, on the generator's device; floating ones are differentiated."""

    @abstractmethod
    def naive(self, t: Inputs, mask: Tensor | None) -> Tensor:
        """The op in plain torch ops, in the dtype of the inputs; `mask` is dropout's."""

    @abstractmethod
    def ours(self, t: Inputs, backend: str) -> Tensor: ...

    @abstractmethod
    def cost(self, dtype: torch.dtype) -> Cost:
        """The least bytes and operations (the op's `cost`)."""

    def exponentials(self) -> tuple[int, int]:
        """Of the forward and of the backward, where they may be what binds."""
        return 0, 0

    @abstractmethod
    def output_shape(self, t: Inputs) -> tuple[int, ...]: ...

    def dtype(self, asked: torch.dtype) -> torch.dtype:
        """That of the inputs, where activations of a dtype are asked for."""
        return asked

    def results(self, run: Run, t: Inputs, grad: Tensor | None) -> Inputs:
        """What is checked of a run: output and gradients of inputs that `with_gradients` made; `grad` None is 1."""
        out = run(t)
        wanted = leaves(t)
        gradients = torch.autograd.grad(out, list(wanted.values()), None if grad is None else grad.to(out.dtype))
        return {"out": out.detach()} | {f"d{n}": g for n, g in zip(wanted, gradients, strict=True)}

    def naive_results(self, t: Inputs, mask: Tensor | None, grad: Tensor | None) -> Inputs:
        """The results of `naive`."""
        return self.results(lambda t: self.naive(t, mask), t, grad)

    def mask(self, t: Inputs) -> Tensor | None:
        """The keep mask that fastlm draws for these inputs."""
        return None

    def eager(self, t: Inputs) -> Tensor:
        """What a user writes in torch; with dropout, F.dropout."""
        return self.naive(t, None)

    def parts(self, t: Inputs) -> dict[str, tuple[Callable[[], Any], float]]:
        """What the op is made of, each to be timed alone, and how often it is done; empty where that is no bound."""
        return {}

    def peers(self) -> list[Peer]:
        return [Peer("eager", lambda t: self.eager), Peer("compile", self.compiled)]

    def compiled(self, t: Inputs) -> Run:
        """`eager` under torch.compile, for this shape alone: its best form."""
        return torch.compile(functools.partial(_eager, self), dynamic=False, fullgraph=True)

    def probe(self, t: Inputs) -> Inputs:
        """Inputs that make visible what dropout kept; only where dropout_p > 0."""
        raise NotImplementedError

    def kept(self, t: Inputs, out: Tensor) -> Tensor:
        """For each element whose fate the output for `probe` shows, whether it was kept."""
        raise NotImplementedError

    def weigh(self, t: Inputs, grad: Tensor) -> Tensor:
        """The gradient of the output with zeros where the output means nothing."""
        return grad

    def excerpt(self, t: Inputs) -> Inputs:
        """Inputs small enough to be computed exactly, and whose results are a part of those of all."""
        return t

    def excerpt_of(self, results: Inputs, part: Inputs) -> Inputs:
        """The part of the results that `excerpt` gives."""
        return results

    def without_dropout(self) -> Self:
        return replace(self, dropout_p=0.0)

    def backends(self, dtype: torch.dtype, device: torch.device) -> dict[str, str | None]:
        """Our backends for this case, and why one cannot serve it. The reference is timed where nothing else is."""
        reasons = {name: self._reason_against(name, dtype, device) for name in ("triton", "cuda")}
        if device.type == "cpu":
            reasons["reference"] = None
        return reasons

    def _reason_against(self, backend: str, dtype: torch.dtype, device: torch.device) -> str | None:
        reasons = backends.reasons_against(self.spec, backend, backends.Call(device.type, dtype))
        return "; ".join(reasons) or None


def leaves(t: Inputs) -> Inputs:
    """The inputs that are differentiated."""
    return {name: x for name, x in t.items() if x.is_floating_point()}


def with_gradients(t: Inputs, dtype: torch.dtype | None = None) -> Inputs:
    """The inputs as leaves of their own, in another dtype where one is given."""

    def leaf(x: Tensor) -> Tensor:
        return x.detach().to(dtype or x.dtype).clone().requires_grad_() if x.is_floating_point() else x

    return {name: leaf(x) for name, x in t.items()}


def _eager(case: Case, t: Inputs) -> Tensor:
    return case.eager(t)


def dropped(x: Tensor, mask: Tensor | None, keep: int) -> Tensor:
    """x with dropout by a given mask, or as it is."""
    return x if mask is None else x * mask.to(x.dtype) * (LEVELS / keep)


def randn(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device) * scale


def package(name: str) -> Any:
    """An importable module by name, or Unavailable."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"cannot be imported: {error}") from error
