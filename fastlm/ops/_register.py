"""Registers an op with PyTorch: the schema, the implementation, the fake implementation and the derivative.

The forward and the backward of an op are two operators. The annotated signature of a function is its schema; the return
type is a NamedTuple of tensors. A fake implementation takes the same arguments as one NamedTuple, and returns outputs
that are allocated but not computed. The derivative is built from names:

    name                                     meaning
    dy, a parameter of the backward          the incoming gradient of y, an output of the forward
    other parameters of the backward         an argument or an output of the forward, which is saved for the backward
    dx, an output of the backward            the gradient of x, an argument of the forward; it is cast to the dtype of x
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections import namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

LIBRARY = torch.library.Library("fastlm", "DEF")
PLAIN_TENSORS = (Tensor, torch.nn.Parameter)

_ENTERED: dict[str, Callable[..., Any]] = {}  # the function behind each operator


class Direction(NamedTuple):
    """Holds a forward or a backward: the function that computes it, and its fake implementation.

    `strided` names the arguments that the kernels take with any strides. All others are made contiguous.
    """

    compute: Callable[..., Any]
    fake: Callable[[Any], Any]
    strided: tuple[str, ...] = ()


def define(
    name: str,
    forward: Direction,
    backward: Direction,
    *,
    save: Callable[[Any, Any], dict[str, Any]] | None = None,
    finish: Callable[[Any, dict[str, Any]], Any] | None = None,
) -> Callable[..., Any]:
    """Registers `fastlm::<name>` with its derivative `fastlm::<name>_backward`; returns the function that calls it.

    Args:
        save: takes the forward's arguments and its outputs, and returns, by name, those arguments of the backward that
            are not the forward's argument or output of the same name.
        finish: takes the backward's outputs and its arguments, by name, and returns the gradients.
    """
    define_operator(name, forward)
    define_operator(f"{name}_backward", backward)
    without_derivative(f"{name}_backward")
    derivative = _Derivative(name, forward.compute, backward.compute, save, finish)
    return differentiate(name, derivative.setup_context, derivative.backward)


def define_operator(name: str, direction: Direction, *, mutates: tuple[str, ...] = ()) -> None:
    """Registers `fastlm::<name>` without a derivative. `mutates` names the arguments that it writes to."""
    signature = inspect.signature(direction.compute, eval_str=True)
    arguments = namedtuple(name, signature.parameters)
    kept = tuple(arguments._fields.index(argument) for argument in (*direction.strided, *mutates))
    LIBRARY.define(_schema(name, signature, mutates), tags=(torch.Tag.pt2_compliant_tag,))
    run = _ENTERED[name] = _entered(direction.compute, signature, kept)
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")

    def fake(*args: Any) -> Any:
        return _returned(direction.fake(arguments(*args)))

    torch.library.register_fake(f"fastlm::{name}", fake, lib=LIBRARY)


def differentiate(name: str, setup_context: Callable[..., None], backward: Callable[..., Any]) -> Callable[..., Any]:
    """Registers the derivative of `fastlm::<name>`; returns the function that calls it.

    The gradient of an unused output is None; autograd's default would be zeros. `backward` is called only if at least
    one output has a gradient.
    """
    count = len(getattr(torch.ops.fastlm, name).default._schema.arguments)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        setup_context(ctx, inputs, output)

    def run(ctx: Any, *grads: Tensor | None) -> Any:
        return backward(ctx, *grads) if any(g is not None for g in grads) else (None,) * count

    torch.library.register_autograd(f"fastlm::{name}", run, setup_context=setup, lib=LIBRARY)
    return _caller(name, setup, run)


def without_derivative(name: str) -> None:
    """Makes differentiating `fastlm::<name>` raise an error. Otherwise a second derivative would be silently wrong."""

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"fastlm::{name} has no derivative: fastlm's ops can be differentiated once, not twice")

    differentiate(name, lambda ctx, inputs, output: None, backward)


def call(name: str, *args: Any) -> Any:
    """Calls `fastlm::<name>`, bypassing the dispatcher for plain tensors without autograd."""
    if not torch.is_grad_enabled() and _is_direct(args):
        return _ENTERED[name](*args)
    return getattr(torch.ops.fastlm, name)(*args)


def _caller(name: str, setup: Callable[..., None], backward: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function that calls an operator. It bypasses the dispatcher for plain tensors.

    For an operator in Python the dispatcher takes several times as long as an autograd.Function: on a GPU longer than
    most kernels run. The reference is always called through the dispatcher, so that the tests cover that way, too.
    """
    run, operator = _ENTERED[name], getattr(torch.ops.fastlm, name).default

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            outputs = run(*args)
            setup(ctx, args, outputs)
            return outputs

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            return backward(ctx, *grads)

    def call_operator(*args: Any) -> Any:
        if args[-1] == "reference" or not _is_direct(args):
            return operator(*args)
        return Direct.apply(*args) if torch.is_grad_enabled() else run(*args)

    return call_operator


def _is_direct(args: tuple[Any, ...]) -> bool:
    """Returns whether all tensors are plain and on a device, and nothing compiles, traces or transforms the call."""
    return (
        not torch.compiler.is_compiling()
        and all(type(a) in PLAIN_TENSORS and a.device.type in ("cpu", "cuda") for a in args if isinstance(a, Tensor))
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def _schema(name: str, signature: inspect.Signature, mutates: tuple[str, ...]) -> str:
    """Returns the schema of an annotated signature, with the names of the outputs."""

    def prototype() -> None: ...

    prototype.__signature__ = signature.replace(return_annotation=None)
    schema = torch.library.infer_schema(prototype, op_name=name, mutates_args=mutates)
    outputs = ", ".join(f"Tensor {output}" for output in _outputs(signature))
    return schema.removesuffix("()") + f"({outputs})"


def _outputs(signature: inspect.Signature) -> tuple[str, ...]:
    returned = signature.return_annotation
    return () if returned is None else returned._fields


def _entered(compute: Callable[..., Any], signature: inspect.Signature, kept: tuple[int, ...]) -> Callable[..., Any]:
    """Wraps an op's function: makes its tensors contiguous and their device current, and turns autocast off.

    Most kernels assume contiguous operands. `kept` holds the positions of the arguments that kernels take with any
    strides. If a position is missing there, the argument is copied needlessly, but the result is right.
    """

    tensors = _tensor_positions(signature)
    dense = [i for i in tensors if i not in kept]

    @functools.wraps(compute)
    def run(*args: Any) -> Any:
        args = list(args)
        for i in dense:
            if args[i] is not None:
                args[i] = _dense(args[i])
        device = next(args[i].device for i in tensors if args[i] is not None)
        if device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            return _returned(compute(*args))
        guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
        with guard, torch.autocast(device.type, enabled=False):
            return _returned(compute(*args))

    return run


def _tensor_positions(signature: inspect.Signature) -> list[int]:
    return [i for i, p in enumerate(signature.parameters.values()) if p.annotation in (Tensor, Tensor | None)]


def _dense(x: Tensor) -> Tensor:
    """Returns x with contiguous strides, even without elements: there `contiguous()` leaves the strides unchanged."""
    if x.numel() == 0:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return x if x.is_contiguous() else x.contiguous()


def _returned(outputs: Any) -> Any:
    """Returns an op's outputs as the dispatcher expects them: a single tensor by itself, several as a plain tuple."""
    if outputs is None:
        return None
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


class _Derivative:
    """Builds the derivative of an op from the names of the arguments and outputs of its forward and its backward."""

    def __init__(
        self, name: str, forward: Callable, backward: Callable, save: Callable | None, finish: Callable | None
    ):
        self.name, self.save, self.finish = f"{name}_backward", save, finish
        forward, backward = (inspect.signature(function, eval_str=True) for function in (forward, backward))
        self.Inputs = namedtuple("Inputs", forward.parameters)
        self.Outputs, self.Gradients = forward.return_annotation, backward.return_annotation
        outputs, gradients = self.Outputs._fields, self.Gradients._fields

        self.parameters = tuple(backward.parameters)
        incoming = {f"d{o}": i for i, o in enumerate(outputs)}
        others = {p: hint.annotation for p, hint in backward.parameters.items() if p not in incoming}
        self.saved = [p for p, hint in others.items() if hint in (Tensor, Tensor | None)]
        self.values = [p for p in others if p not in self.saved]
        # position: where each saved tensor or value is among the forward's arguments and outputs. order: where each
        # argument of the backward is among the incoming gradients, saved tensors and values. gradient: which output of
        # the backward is the gradient of each argument of the forward.
        self.position = {p: i for i, p in reversed([*enumerate((*self.Inputs._fields, *outputs))])}
        found = [*(f"d{o}" for o in outputs), *self.saved, *self.values]
        self.order = [found.index(p) for p in self.parameters]
        self.gradient = [gradients.index(f"d{a}") if f"d{a}" in gradients else None for a in self.Inputs._fields]

    def setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        everything = (*inputs, *outputs)
        told = {} if self.save is None else self.save(self.Inputs(*inputs), self.Outputs(*outputs))

        def value(parameter: str) -> Any:
            return told[parameter] if parameter in told else everything[self.position[parameter]]

        ctx.save_for_backward(*map(value, self.saved))
        ctx.values = [value(p) for p in self.values]
        ctx.dtypes = [
            a.dtype if g is not None and a is not None else None for a, g in zip(inputs, self.gradient, strict=True)
        ]

    def backward(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        found = (*grads, *ctx.saved_tensors, *ctx.values)
        arguments = [found[i] for i in self.order]
        gradients = call(self.name, *arguments)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        if self.finish is not None:
            known = dict(zip(self.parameters, arguments, strict=True))
            gradients = self.finish(self.Gradients(*gradients), known)
        return tuple(
            None if dtype is None else as_dtype(gradients[i], dtype)
            for i, dtype in zip(self.gradient, ctx.dtypes, strict=True)
        )


def as_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns x in a dtype. Comparing first takes a tenth of the time of a `to` that changes nothing."""
    return x if x.dtype == dtype else x.to(dtype)


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Casts the tensors to autocast's dtype if autocast is on, except float64; otherwise returns them unchanged."""
    return tuple(t.to(autocast_dtype(t)) if isinstance(t, Tensor) and t.is_floating_point() else t for t in tensors)


def autocast_dtype(table: Tensor) -> torch.dtype:
    """Returns the dtype that autocast gives to activations that are read from a table of parameters."""
    device = table.device.type
    if table.dtype == torch.float64 or not _is_autocast(device):
        return table.dtype
    return torch.get_autocast_dtype(device)


def _is_autocast(device: str) -> bool:
    """Returns whether autocast is on. It never is for "meta", which has no autocast.

    (torch 2.11 cannot compile torch.amp.is_autocast_available.)
    """
    return device != "meta" and torch.is_autocast_enabled(device)


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Returns whether autograd will ask for the gradient of any of the tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def as_rows(x: Tensor) -> Tensor:
    """Views a contiguous (..., E) as rows (N, E)."""
    return x.view(-1, x.shape[-1])


def wide_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype of sums and statistics: float32, and float64 for float64 inputs."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def empty_row_stats(x: Tensor) -> Tensor:
    """Allocates one number per row of x (..., E): (N,), in `wide_dtype`."""
    return x.new_empty(math.prod(x.shape[:-1]), dtype=wide_dtype(x))


def empty_parameter_gradient(x: Tensor) -> Tensor:
    """Allocates the gradient of a parameter with one element per column of x (..., E): (E,), in `wide_dtype`."""
    return x.new_empty(x.shape[-1], dtype=wide_dtype(x))


def num_partials(rows: int, device: torch.device) -> int:
    """Returns the number of programs of a backward that sums over rows. Each program writes one partial sum.

    It depends only on the shape and the chip, so that results repeat bit for bit. A GPU runs four programs per SM,
    which fill a Hopper chip at 64 registers per thread. On a CPU (emulator, interpreter) there are eight, which run one
    after another.
    """
    most = 4 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8
    return max(1, min(most, rows))
