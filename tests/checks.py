"""The accuracy rule of all ops, and the (backend, dtype, device) cases in which it is tested.

`naive` is the computation in plain torch ops. Errors are differences from `naive` in float64 on the same (rounded)
inputs. The rule bounds the largest and the RMS error, of the output and of every gradient:

    error <= 2 * error of naive in the same dtype               + floor
    error <= 2 * error of naive in float32, rounded to the dtype + floor     (results in the activations' dtype only)

The floor is half a unit in the last place: eps / 2 times the largest value, or the RMS. For a single number, such as a
mean loss, it is one and a half units: there the error of naive is one sample, which by chance may be 0.

The second bound does not hold for float32 results beside half-precision activations, such as the gradient of a float32
gamma: they are computed from stored activations, which were rounded. For the same reason some `naive` functions round
the intermediate results that their op stores in the activations' dtype.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

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
    """Returns a parameter per (backend, dtype, device) that the op's SPEC names; those on a GPU are marked `gpu`."""
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


def long_cases(op: str) -> list:
    """Those of `cases(op)`, for tests that take long: Triton's interpreter takes float16 in the slow tier only.

    It runs the same program in float32 in the fast tier.
    """
    found = cases(op)
    for i, case in enumerate(found):
        if case.id == "triton-fp16-cpu":
            found[i] = pytest.param(*case.values, id=case.id, marks=pytest.mark.slow)
    return found


def kernel_cases(op: str) -> list:
    """Returns the cases of `cases(op)` whose backend has launchers, on any device."""
    return [case for case in cases(op) if case.values[0].backend not in PLAIN]


def _runs_on_cpu(backend: str, dtype: torch.dtype) -> bool:
    """Returns whether a backend is tested on CPU tensors.

    Kernels are tested there if there is no GPU, except Triton's in bfloat16, which its interpreter computes wrongly.
    """
    if backend in PLAIN:
        return True
    return not torch.cuda.is_available() and not (backend == "triton" and dtype == torch.bfloat16)


def inputs(device: str, dtype: torch.dtype, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Returns normally distributed tensors of the given shapes, the same in every call."""
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
    """Returns the outputs and gradients of `function`. Its tensors are cast to `dtype`, but those named in `wide` to
    float32, unless `dtype` is float64.

    With may_wait=False, a synchronization with the GPU is an error.
    """

    def cast(name: str, x: Tensor) -> Tensor:
        return x.detach().to(torch.float32 if name in wide and dtype != torch.float64 else dtype).requires_grad_()

    arguments = {name: cast(name, x) for name, x in tensors.items()}
    with _waiting(may_wait):
        out = function(**arguments)
    outs = out if isinstance(out, tuple) else (out,)
    generator = torch.Generator().manual_seed(4321)
    douts = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in outs]
    # Rounded to bfloat16, the coarsest dtype, so that evaluations in all dtypes get the same gradients.
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


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns x with values that were rounded to `dtype`, and a gradient that was not; in float64, x itself."""
    return x if x.dtype == torch.float64 else x + (x.to(dtype).to(x.dtype) - x).detach()


def assert_accurate(
    op: Op,
    naive: Op,
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    *,
    wide: tuple[str, ...] = (),
) -> None:
    """Asserts the rule above. `wide` names the tensors that `op` takes in float32; the yardstick takes none."""
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
    assert torch.isfinite(yardstick).all(), f"{name}: these inputs test nothing, because {what} overflows"
    floor = torch.finfo(yardstick.dtype).eps / 2 * (3 if exact.numel() == 1 else 1)
    error, allowed = actual.double() - exact, yardstick.double() - exact
    norms = {"largest": lambda t: t.abs().max().item(), "rms": lambda t: t.square().mean().sqrt().item()}
    for kind, norm in norms.items():
        bound = 2 * norm(allowed) + floor * norm(exact)
        assert norm(error) <= bound, f"{name}: {kind} error {norm(error):.3g} is over {bound:.3g}, set by {what}"


def assert_repeats(op: Op, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Asserts that forward and backward give the same bits when run again, and when compiled without graph breaks."""
    first = evaluate(op, tensors, dtype)
    torch._dynamo.reset()  # the function is one code object for all cases, whose number is above the recompile limit
    for again in (op, torch.compile(op, fullgraph=True, backend="aot_eager")):
        second = evaluate(again, tensors, dtype)
        assert all(torch.equal(first[name], second[name]) for name in first)


def constant_rows(case: Case, columns: int) -> Tensor:
    """Returns 61 rows, each constant, with values from -3 to 3. Their variance is 0, so rstd is 1 / sqrt(eps)."""
    return torch.linspace(-3, 3, 61, device=case.device).to(case.dtype)[:, None].expand(61, columns)


def assert_normalises_constant_rows(op: Op, naive: Op, tensors: dict[str, Tensor], case: Case) -> None:
    """Asserts the rule above for constant rows with eps = 1e-12, where rstd = 10^6 magnifies any error of the mean.

    rstd magnifies the gradients, too: gamma is scaled so that they fit in float16. In float16 torch stores rstd in
    float16, where 10^6 overflows, so the yardstick is only the float32 computation, rounded once.
    """

    def in_float32(**tensors: Tensor) -> Tensor:
        dtype = tensors["gamma"].dtype
        wide = {name: x if dtype == torch.float64 else x.float() for name, x in tensors.items()}
        return naive(**wide, eps=1e-12).to(dtype)

    tensors = tensors | {"gamma": tensors["gamma"] / 1024}
    assert_accurate(partial(op, eps=1e-12), in_float32, tensors, case.dtype)


def assert_takes_any_size(op: Callable[..., Tensor], case: Case, shape: tuple[int, ...]) -> None:
    """Asserts that `op(x, vector)` takes an x of any shape, also an empty one, and gives finite gradients."""
    x = torch.randn(shape, dtype=case.dtype, device=case.device).requires_grad_()
    vector = torch.ones(shape[-1], dtype=case.dtype, device=case.device).requires_grad_()
    op(x, vector, backend=case.backend).sum().backward()
    assert x.grad.shape == shape
    assert torch.isfinite(vector.grad).all()


def assert_takes_strides(op: Callable[..., Tensor], case: Case) -> None:
    """Asserts that `op` gives the same for unaligned rows with gaps between them as for a contiguous copy."""
    x = torch.randn(6, 3, 65, dtype=case.dtype, device=case.device)[:, 1, 1:]
    vector = torch.ones(64, dtype=case.dtype, device=case.device)
    assert torch.equal(op(x, vector, backend=case.backend), op(x.clone(), vector, backend=case.backend))


def assert_differentiable_once(op: Callable[..., Tensor], tensors: dict[str, Tensor]) -> None:
    """Asserts that a second derivative raises instead of being silently wrong."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}
    first = next(iter(leaves.values()))
    (gradient,) = torch.autograd.grad(op(**leaves).square().sum(), first, create_graph=True)
    with pytest.raises(RuntimeError, match="once, not twice"):
        gradient.sum().backward()


def assert_passes_opcheck(op: str, *arguments: object) -> None:
    """Asserts torch.library.opcheck: the schema, the fake implementation and the derivative agree with the op."""
    torch.library.opcheck(getattr(torch.ops.fastlm, op).default, arguments, rtol=0, atol=0)
