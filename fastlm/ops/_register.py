"""How an op becomes a PyTorch operator: schema, implementation, fake, derivative."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("fastlm", "DEF")


def define(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    strided: tuple[str, ...] = (),
) -> None:
    """Registers `fastlm::<schema>`.

    `implementation` gets contiguous tensors, but for the arguments named in `strided`. Without `backward`,
    differentiating the op raises; an op that mutates an argument has no derivative at all.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    arguments = [argument.name for argument in getattr(torch.ops.fastlm, name).default._schema.arguments]
    as_given = frozenset(arguments.index(argument) for argument in strided)
    LIBRARY.impl(name, _guarded(implementation, as_given), "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastlm::{name}", fake, lib=LIBRARY)
    if "(a!)" in schema:
        return
    torch.library.register_autograd(
        f"fastlm::{name}",
        _where_used(backward, len(arguments)) if backward else _no_derivative(name),
        setup_context=_unmaterialised(setup_context),
        lib=LIBRARY,
    )


def _guarded(implementation: Callable[..., Any], as_given: frozenset[int]) -> Callable[..., Any]:
    """Wraps an op's implementation: its tensors become contiguous, their device current, and autocast is off.

    Kernels read their operands by index. Making every operand contiguous here, unless the op says that its kernels take
    strides (the positions `as_given`), makes a forgotten stride a copy and not a wrong result.
    """

    @functools.wraps(implementation)
    def run(*args: Any) -> Any:
        device = next(a.device for a in args if isinstance(a, Tensor))
        guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
        with guard, torch.autocast(device.type, enabled=False):
            return implementation(
                *(_dense(a) if isinstance(a, Tensor) and i not in as_given else a for i, a in enumerate(args))
            )

    return run


def _dense(x: Tensor) -> Tensor:
    """Returns x with contiguous strides. `contiguous()` leaves any strides to a tensor without elements."""
    return x.contiguous() if x.numel() else torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _unmaterialised(setup_context: Callable[..., None] | None) -> Callable[..., None]:
    """Let an output that nothing used have a gradient of None, where autograd would pass zeros."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        if setup_context is not None:
            setup_context(ctx, inputs, output)

    return setup


def _where_used(backward: Callable[..., Any], arguments: int) -> Callable[..., Any]:
    """`backward`, called only where some output has a gradient."""

    def run(ctx: Any, *grads: Tensor | None) -> Any:
        return backward(ctx, *grads) if any(g is not None for g in grads) else (None,) * arguments

    return run


def _no_derivative(name: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"fastlm::{name} has no derivative: fastlm's ops can be differentiated once, not twice")

    return backward


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in autocast's dtype where autocast is on (float64 stays), else as they are."""
    return tuple(t.to(autocast_dtype(t)) if isinstance(t, Tensor) and t.is_floating_point() else t for t in tensors)


def autocast_dtype(table: Tensor) -> torch.dtype:
    """The dtype that autocast gives to what is read from a table of parameters."""
    device = table.device.type
    if table.dtype == torch.float64 or not _is_autocast(device):
        return table.dtype
    return torch.get_autocast_dtype(device)


def _is_autocast(device: str) -> bool:
    """Tells whether autocast is on; devices that it does not know ("meta") have none."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for the gradient of any of the tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def as_rows(x: Tensor) -> Tensor:
    """Views a contiguous (..., E) as rows (N, E)."""
    return x.view(-1, x.shape[-1])


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums and statistics: float32, and float64 for float64 inputs."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def statistics(x: Tensor) -> Tensor:
    """Room for a number a row of (..., E): (N,), wide."""
    return x.new_empty(math.prod(x.shape[:-1]), dtype=wide_dtype(x))


def normalised(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what a layer norm of x gives: y of its shape, mean and rstd."""
    return x.new_empty(x.shape), statistics(x), statistics(x)


def programs(rows: int, device: torch.device) -> int:
    """How many persistent programs a backward that sums over rows is run with, each with a partial sum of its own.

    A function of the shape and the chip alone, so that results repeat bit for bit: four programs a
    multiprocessor, which fills a Hopper chip at 64 registers a thread; eight on a CPU, where they run in turn.
    """
    most = 4 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8
    return max(1, min(most, rows))
