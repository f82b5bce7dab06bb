"""The launches of a benchmark case on an H100: fastlm's ops run, and their launches are recorded.

No kernel is listed here. The ops run on CPU tensors that hold no data. Matrix products, which fastlm leaves to torch,
are left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.case import Case, Inputs, leaves
from benchmarks.predict.build import recording_extension
from benchmarks.predict.chip import Chip
from benchmarks.predict.instructions import Kernel, load
from benchmarks.predict.recording import Recorded, recording_cuda, recording_triton

# Products that fastlm leaves to torch.
PRODUCTS = {"mm", "addmm", "addmm_", "matmul", "linear", "grouped_mm", "_grouped_mm"}


def use_kernels_of(checkout: Path) -> None:
    """Makes kernels/ of a checkout importable as fastlm.kernels, as an installation does."""
    import fastlm

    if (Path(fastlm.__file__).parent / "kernels").exists():
        return
    folder = checkout / "kernels"
    spec = importlib.util.spec_from_file_location(
        "fastlm.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["fastlm.kernels"] = fastlm.kernels = module
    spec.loader.exec_module(module)


@dataclass(frozen=True)
class Pass:
    """Holds the launches of one pass of a case: "forward", "backward", "both" or "step", or "both without products"."""

    name: str
    launches: list[Recorded]
    most_bytes: float  # what they move from and to HBM is at most the op's cost, if they are the whole pass
    flops: float  # 0 if products were left to torch


class Launchers:
    """Gives the ops of a checkout their launchers, and records what these launch."""

    def __init__(self, checkout: Path, stems: Iterable[str]):
        """`stems` names the files in csrc/ to compile, once a CUDA launch is asked for."""
        self.checkout, self.stems = checkout, sorted(set(stems))
        use_kernels_of(checkout)

    @functools.cached_property
    def extension(self) -> tuple[Any, ctypes.CDLL, dict[str, Kernel]]:
        module, library, cubins = recording_extension(self.checkout / "csrc", self.stems)
        return module, library, {name: kernel for cubin in cubins for name, kernel in load(cubin).items()}

    def passes(self, case: Case, backend: str) -> list[Pass]:
        """Runs a case on a backend and returns the launches of its passes. Raises RuntimeError if the op refuses it."""
        dtype = case.dtype(torch.bfloat16)
        t, products = inputs_without_data(case, dtype), _WithoutProducts()
        with self._recording(case.spec.kernels, backend, known_contents(t)) as found, torch.enable_grad(), products:
            out = case.ours(t, backend)
            forward = len(found)
            if case.passes != ("step",):
                torch.autograd.grad(out, list(leaves(t).values()), torch.empty_like(out), allow_unused=True)
        cost, whole = case.cost(dtype), not products.left_out

        def one(name: str, launches: list[Recorded], bytes_: float, flops: float) -> Pass:
            name = name if whole else f"{name} without products"  # so that no measured pass has this name
            return Pass(name, launches, bytes_ if whole else math.inf, flops if whole and case.products else 0.0)

        if len(case.passes) == 1:
            both = cost.forward_bytes + cost.backward_bytes, cost.forward_flops + cost.backward_flops
            return [one(case.passes[0], found, *both)]
        return [
            one("forward", found[:forward], cost.forward_bytes, cost.forward_flops),
            one("backward", found[forward:], cost.backward_bytes, cost.backward_flops),
        ]

    @contextlib.contextmanager
    def _recording(self, stem: str, backend: str, known: dict[int, bytes]) -> Iterator[list[Recorded]]:
        from fastlm import backends

        with contextlib.ExitStack() as stack:
            if backend == "cuda":
                module, library, kernels = self.extension
                launchers, recording = _WithStream(module), recording_cuda(library, kernels)
            else:
                launchers, recording = importlib.import_module(f"fastlm.kernels.{stem}"), recording_triton()
            enter = stack.enter_context
            found = enter(recording)
            enter(mock.patch.object(backends, "_unavailable", lambda *_: None))
            enter(mock.patch.object(backends, "launchers", lambda *_: launchers))
            for module in [m for name, m in sys.modules.items() if name.startswith("fastlm.ops.")]:
                if hasattr(module, "num_partials"):
                    enter(mock.patch.object(module, "num_partials", _num_partials))
            yield found
            for recorded in found:
                recorded.launch.memory.update(known)


def _num_partials(rows: int, device: torch.device) -> int:
    """Returns what fastlm.ops returns on an H100."""
    return max(1, min(4 * Chip.multiprocessors, rows))


class _WithStream:
    """Gives launchers of `_C` a stream as their last argument."""

    def __init__(self, module: Any):
        self._module = module

    def __getattr__(self, name: str) -> Callable[..., None]:
        launcher = getattr(self._module, name)
        return lambda *args: launcher(*args, 0)


class _WithoutProducts(TorchFunctionMode):
    """Allocates the results of matrix products and does not compute them."""

    left_out = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in PRODUCTS:
            return func(*args, **kwargs)
        self.left_out = True
        if kwargs.get("out") is not None:
            return kwargs["out"]
        if name.endswith("_"):
            return args[0]
        on_meta = [a.to("meta") if isinstance(a, Tensor) else a for a in args]
        shaped = func(*on_meta, **{k: v.to("meta") if isinstance(v, Tensor) else v for k, v in kwargs.items()})
        return torch.empty(shaped.shape, dtype=shaped.dtype)


def inputs_without_data(case: Case, dtype: torch.dtype) -> Inputs:
    """Returns a case's inputs. Floating-point tensors have no data; integers (lengths, targets) have."""

    def without_data(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.empty(shape)

    with contextlib.ExitStack() as stack:
        for name in [n for n in sys.modules if n.startswith("benchmarks.")]:
            if hasattr(sys.modules[name], "randn"):
                stack.enter_context(mock.patch.object(sys.modules[name], "randn", without_data))
        t = case.inputs(torch.Generator().manual_seed(0))
    return {
        name: torch.empty(x.shape, dtype=dtype, requires_grad=True) if x.is_floating_point() else x
        for name, x in t.items()
    }


def known_contents(t: Inputs) -> dict[int, bytes]:
    """Returns, by address, the inputs that decide branches: all integers but dropout's seed."""
    known = {name: x for name, x in t.items() if not x.is_floating_point() and name != "seed"}
    return {x.data_ptr(): ctypes.string_at(x.data_ptr(), x.numel() * x.element_size()) for x in known.values()}
