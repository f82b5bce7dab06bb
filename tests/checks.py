"""The rule by which an op is right, and the cases that it must be right in.

The yardstick is the naive computation in plain torch ops and the same dtype, against float64 on the same
(rounded) inputs: of the output and of every gradient, the largest and the root-mean-square error may be at
most twice the yardstick's. What is stored in the dtype of the activations may also have at most twice the error of
the float32 computation rounded once. (What an op keeps in float32 beside half-precision activations, such as
the gradient of a float32 gamma, cannot: it is computed from activations that were rounded when they were stored.
For the same reason a `naive` may be told what its op stores on the way in the dtype of the activations.)
The floor is half a unit in the last place of the largest value, which one rounding may cost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fastlm.backends import PLAIN
from fastlm.ops import SPECS

Op = Callable[..., Tensor | tuple[Tensor, ...]]

SHORT = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}


@dataclass(frozen=True)
class Case:
    backend: str
    dtype: torch.dtype
    device: str

    def __str__(self) -> str:
        return f"{self.backend}-{SHORT[self.dtype]}-{self.device}"


def cases(op: str, *, float64: bool = False) -> list:
    """The (backend, dtype, device) that the op's SPEC names, those on a GPU marked `gpu`."""
    found = []
    for backend, limits in SPECS[op].limits.items():
        for dtype in limits.dtypes:
            if dtype == torch.float64 and not float64:
                continue
            if backend != "cpu":
                on_gpu = Case(backend, dtype, "cuda")
                found.append(pytest.param(on_gpu, id=str(on_gpu), marks=pytest.mark.gpu))
            if _runs_on_cpu(backend, dtype):
                on_cpu = Case(backend, dtype, "cpu")
                found.append(pytest.param(on_cpu, id=str(on_cpu)))
    return found


def kernel_cases(op: str) -> list:
    """Those of `cases(op)` that have launchers: kernels, on whatever device."""
    return [case for case in cases(op) if case.values[0].backend not in PLAIN]


def _runs_on_cpu(backend: str, dtype: torch.dtype) -> bool:
    """Kernels run on CPU tensors where there is no GPU; Triton's interpreter computes bfloat16 wrongly."""
    if backend in PLAIN:
        return True
    return not torch.cuda.is_available() and not (backend == "triton" and dtype == torch.bfloat16)


def inputs(device: str, dtype: torch.dtype, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Normal values of the given shapes, exactly representable in `dtype`; a generator of their own."""
    generator = torch.Generator().manual_seed(1234)
    values = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return {name: value.to(dtype).to(device) for name, value in values.items()}


def evaluate(
    function: Op,
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    wide: tuple[str, ...] = (),
    *,
    may_wait: bool = True,
) -> dict[str, Tensor]:
    """Outputs and gradients of `function`, whose tensors are cast to `dtype`, those named in `wide` to float32.

    Unless it `may_wait`, making the host wait for a GPU is an error.
    """

    def cast(name: str, x: Tensor) -> Tensor:
        return x.detach().to(torch.float32 if name in wide and dtype != torch.float64 else dtype).requires_grad_()

    arguments = {name: cast(name, x) for name, x in tensors.items()}
    with _waiting(may_wait):
        out = function(**arguments)
    outs = out if isinstance(out, tuple) else (out,)
    generator = torch.Generator().manual_seed(4321)
    douts = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in outs]
    # Rounded as the coarsest dtype of the comparison would have it, so that all see the same gradient.
    douts = [d.to(torch.bfloat16).to(o.dtype).to(o.device) for d, o in zip(douts, outs, strict=True)]
    with _waiting(may_wait):
        gradients = torch.autograd.grad(outs, list(arguments.values()), douts)
    results = {f"out{i}": o.detach() for i, o in enumerate(outs)}
    return results | {f"d{name}": g for name, g in zip(arguments, gradients, strict=True)}


@contextlib.contextmanager
def _waiting(allowed: bool) -> Iterator[None]:
    if allowed or not torch.cuda.is_available():
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def assert_accurate(
    op: Op,
    naive: Op,
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    *,
    wide: tuple[str, ...] = (),
) -> None:
    """Hold `op` to the rule above; `wide` names the parameters that `op` (not the yardstick) takes in float32."""
    actual = evaluate(op, tensors, dtype, wide, may_wait=False)
    exact = evaluate(naive, tensors, torch.float64)
    yardstick = evaluate(naive, tensors, dtype)
    once = {name: x.to(dtype) for name, x in evaluate(naive, tensors, torch.float32).items()}
    for name, value in actual.items():
        assert value.shape == exact[name].shape, f"{name}: shape {tuple(value.shape)}, not {tuple(exact[name].shape)}"
        _assert_close(name, value, yardstick[name], exact[name], "the same computation in plain torch ops")
        if value.dtype == dtype:
            _assert_close(name, value, once[name], exact[name], "the float32 computation rounded once")


def _assert_close(name: str, actual: Tensor, yardstick: Tensor, exact: Tensor, what: str) -> None:
    if exact.numel() == 0:
        return
    assert torch.isfinite(actual).all(), f"{name}: not finite"
    assert torch.isfinite(yardstick).all(), f"{name}: these inputs are no test, for {what} overflows"
    ulp = torch.finfo(yardstick.dtype).eps / 2
    error, allowed = actual.double() - exact, yardstick.double() - exact
    norms = {"largest": lambda t: t.abs().max().item(), "rms": lambda t: t.square().mean().sqrt().item()}
    for kind, norm in norms.items():
        bound = 2 * norm(allowed) + ulp * norm(exact)
        assert norm(error) <= bound, f"{name}: {kind} error {norm(error):.3g} is over {bound:.3g}: {what}"


def assert_repeats(op: Op, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Forward and backward run twice, and compiled without graph breaks, give the same bits."""
    first = evaluate(op, tensors, dtype)
    for again in (op, torch.compile(op, fullgraph=True, backend="aot_eager")):
        second = evaluate(again, tensors, dtype)
        assert all(torch.equal(first[name], second[name]) for name in first)


def assert_takes_any_size(op: Callable[..., Tensor], case: Case, shape: tuple[int, ...]) -> None:
    """`op` of x and of a vector that it needs, without rows or with one: gradients of their shapes, and finite."""
    x = torch.randn(shape, dtype=case.dtype, device=case.device).requires_grad_()
    vector = torch.ones(shape[-1], dtype=case.dtype, device=case.device).requires_grad_()
    op(x, vector, backend=case.backend).sum().backward()
    assert x.grad.shape == shape
    assert torch.isfinite(vector.grad).all()


def assert_takes_strides(op: Callable[..., Tensor], case: Case) -> None:
    """`op` of rows that lie apart and begin anywhere is `op` of their copy."""
    x = torch.randn(6, 3, 65, dtype=case.dtype, device=case.device)[:, 1, 1:]
    vector = torch.ones(64, dtype=case.dtype, device=case.device)
    assert torch.equal(op(x, vector, backend=case.backend), op(x.clone(), vector, backend=case.backend))


def assert_differentiable_once(op: Callable[..., Tensor], tensors: dict[str, Tensor]) -> None:
    """A second derivative raises: without a rule it would be silently wrong."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}
    first = next(iter(leaves.values()))
    (gradient,) = torch.autograd.grad(op(**leaves).square().sum(), first, create_graph=True)
    with pytest.raises(RuntimeError, match="once, not twice"):
        gradient.sum().backward()


def assert_passes_opcheck(op: str, *arguments: object) -> None:
    """torch.library.opcheck: schema, fake and derivative agree with what runs, and compile."""
    torch.library.opcheck(getattr(torch.ops.fastlm, op).default, arguments, rtol=0, atol=0)
