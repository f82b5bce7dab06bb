"""A case is one op at one shape: its inputs, its exact results, its minimum cost, and the peers that compute it too."""

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
    """Says why a peer cannot run a case."""


@dataclass(frozen=True)
class Peer:
    """Names another implementation.

    `build` takes one set of inputs and returns a function that computes the op for such inputs, or raises Unavailable.
    """

    name: str
    build: Callable[[Inputs], Run]


@dataclass(frozen=True)
class Case(ABC):
    """Defines what a case is; each op has one subclass. `label` names the shape in tables."""

    op: ClassVar[str]
    passes: ClassVar[tuple[str, ...]] = ("forward", "backward", "both")
    products: ClassVar[bool] = False  # whether FLOPs (of matrix products) enter the lower bound, too
    label: str
    dropout_p: float = 0.0

    @property
    def shape(self) -> str:
        """Returns the label, followed by the other options that vary."""
        return f"{self.label} p={self.dropout_p:g}" if self.dropout_p else self.label

    @property
    def spec(self) -> backends.Spec:
        """Returns the op's SPEC."""
        return SPECS[self.op]

    @property
    def keep(self) -> int:
        return keep_count(self.dropout_p)

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """Returns the sizes and options of the case, by name, for the results file."""

    @abstractmethod
    def inputs(self, generator: torch.Generator) -> Inputs:
        """Returns one set of float32 inputs on the generator's device. All floating-point inputs get gradients."""

    @abstractmethod
    def naive(self, t: Inputs, mask: Tensor | None) -> Tensor:
        """Computes the op in plain torch ops, in the dtype of the inputs. `mask` is the dropout mask."""

    @abstractmethod
    def ours(self, t: Inputs, backend: str) -> Tensor:
        """Calls fastlm's op."""

    @abstractmethod
    def cost(self, dtype: torch.dtype) -> Cost:
        """Returns the minimum bytes and FLOPs (the SPEC's `cost`)."""

    def exponentials(self) -> tuple[int, int]:
        """Returns the number of exponentials in the forward and in the backward; 0 where they cannot be the limit."""
        return 0, 0

    @abstractmethod
    def output_shape(self, t: Inputs) -> tuple[int, ...]: ...

    def dtype(self, asked: torch.dtype) -> torch.dtype:
        """Returns the dtype of the inputs in a run whose activations have the dtype `asked`."""
        return asked

    def results(self, run: Run, t: Inputs, grad: Tensor | None) -> Inputs:
        """Returns the results to check: the output and the gradient of each leaf. grad=None stands for 1."""
        out = run(t)
        wanted = leaves(t)
        gradients = torch.autograd.grad(out, list(wanted.values()), None if grad is None else grad.to(out.dtype))
        return {"out": out.detach()} | {f"d{n}": g for n, g in zip(wanted, gradients, strict=True)}

    def naive_results(self, t: Inputs, mask: Tensor | None, grad: Tensor | None) -> Inputs:
        """Returns the `results` of `naive`."""
        return self.results(lambda t: self.naive(t, mask), t, grad)

    def mask(self, t: Inputs) -> Tensor | None:
        """Returns the keep mask that fastlm draws for these inputs, or None without dropout."""
        return None

    def eager(self, t: Inputs) -> Tensor:
        """Computes the op as a user would write it in torch, with F.dropout."""
        return self.naive(t, None)

    def parts(self, t: Inputs) -> dict[str, tuple[Callable[[], Any], float]]:
        """Returns the library calls that any implementation must make, as {name: (call, repetitions)}.

        Each is timed alone, and the sum of the times is printed as a lower bound. Empty for most ops.
        """
        return {}

    def peers(self) -> list[Peer]:
        return [Peer("eager", lambda t: self.eager), Peer("compile", self.compiled)]

    def compiled(self, t: Inputs) -> Run:
        """Returns `eager` under torch.compile with static shapes, which is its fastest form."""
        return torch.compile(functools.partial(_eager, self), dynamic=False, fullgraph=True)

    def probe(self, t: Inputs) -> Inputs:
        """Returns inputs whose output shows which elements dropout kept. Needed only if dropout_p > 0."""
        raise NotImplementedError(f"{self.op}: its cases have no dropout")

    def kept(self, t: Inputs, out: Tensor) -> Tensor:
        """Returns whether each element was kept, as far as `out`, the output for `probe(t)`, shows it."""
        raise NotImplementedError(f"{self.op}: its cases have no dropout")

    def zero_padding(self, t: Inputs, out: Tensor) -> Tensor:
        """Returns the output, or its gradient, with zeros in padded rows, where any value is correct."""
        return out

    def excerpt(self, t: Inputs) -> Inputs:
        """Returns a part of the inputs that is small enough for float64. Its results must not depend on the rest."""
        return t

    def excerpt_results(self, results: Inputs, part: Inputs) -> Inputs:
        """Returns the part of the results that belongs to `part`, the inputs that `excerpt` returned."""
        return results

    def without_dropout(self) -> Self:
        return replace(self, dropout_p=0.0)

    def backends(self, dtype: torch.dtype, device: torch.device) -> dict[str, str | None]:
        """Returns fastlm's backends, each with None or the reason why it cannot serve this case.

        Backends in plain PyTorch are timed only on a CPU.
        """
        names = ("triton", "cuda", *(backends.ORDER["cpu"] if device.type == "cpu" else ()))
        return {name: self._reason_against(name, dtype, device) for name in names}

    def _reason_against(self, backend: str, dtype: torch.dtype, device: torch.device) -> str | None:
        reasons = backends.reasons_against(self.spec, backend, backends.Call(device.type, dtype))
        return "; ".join(reasons) or None


def leaves(t: Inputs) -> Inputs:
    """Returns the inputs that get gradients: all floating-point ones."""
    return {name: x for name, x in t.items() if x.is_floating_point()}


def with_gradients(t: Inputs, dtype: torch.dtype | None = None) -> Inputs:
    """Returns copies of the inputs as leaves of autograd, converted to `dtype` if one is given."""

    def leaf(x: Tensor) -> Tensor:
        return x.detach().to(dtype or x.dtype).clone().requires_grad_() if x.is_floating_point() else x

    return {name: leaf(x) for name, x in t.items()}


def _eager(case: Case, t: Inputs) -> Tensor:
    return case.eager(t)


def apply_mask(x: Tensor, mask: Tensor | None, keep: int) -> Tensor:
    """Returns x with dropout by the given keep mask, scaled by 256 / keep; x itself if mask is None."""
    return x if mask is None else x * mask.to(x.dtype) * (LEVELS / keep)


def randn(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device) * scale


def package(name: str) -> Any:
    """Imports a module by name; raises Unavailable if that fails."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"cannot be imported: {error}") from error
