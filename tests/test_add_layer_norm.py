"""add_layer_norm: LN(residual + dropout(x + bias)), in every backend and dtype that its SPEC names."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from checks import (
    Case,
    assert_accurate,
    assert_differentiable_once,
    assert_normalises_constant_rows,
    assert_passes_opcheck,
    assert_repeats,
    cases,
    constant_rows,
    evaluate,
    inputs,
    long_cases,
    rounded,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlm
from fastlm import backends
from fastlm.dropout import draw_seeds, keep_count, row_mask
from fastlm.ops import SPECS

OP = "add_layer_norm"
SHAPES = [(37, 768), (5, 1024), (3, 1000), (64, 16), (17, 100), (9, 7), (1, 3), (2, 8192), (33, 2), (8, 48)]


def naive(x, residual, gamma, beta=None, bias=None, mask=None, keep=256, eps=1e-5, stored=None):
    """Computes the op in plain torch ops. The sum is rounded to `stored`, the dtype in which the ops store it."""
    h = x if bias is None else x + bias
    h = h if mask is None else h * mask.to(x.dtype) * (256 / keep)
    s = rounded(residual + h, stored or x.dtype)
    return F.layer_norm(s, s.shape[-1:], gamma, beta, eps), s


def tensors(case: Case, rows: int, columns: int) -> dict[str, torch.Tensor]:
    vectors = {name: (columns,) for name in ("gamma", "beta", "bias")}
    return inputs(case.device, case.dtype, x=(rows, columns), residual=(rows, columns), **vectors)


def check(case: Case, rows: int, columns: int, p: float = 0.1, wide: tuple[str, ...] = ()) -> None:
    seed = torch.tensor([-(2**40) + 12345], device=case.device)
    keep = keep_count(p)
    mask = row_mask(seed, rows, columns, keep) if p else None
    assert_accurate(
        lambda **t: fastlm.add_layer_norm(**t, dropout_p=p, seed=seed, return_sum=True, backend=case.backend),
        lambda **t: naive(**t, mask=mask, keep=keep, stored=case.dtype),
        tensors(case, rows, columns),
        case.dtype,
        wide=wide,
    )


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize(("rows", "columns"), SHAPES, ids=str)
def test_accuracy(case, rows, columns):
    check(case, rows, columns)


@pytest.mark.parametrize("case", cases(OP))
def test_accuracy_without_dropout(case):
    check(case, 19, 768, p=0.0)


@pytest.mark.parametrize("case", cases(OP))
def test_accuracy_with_float32_parameters(case):
    check(case, 19, 768, wide=("gamma", "beta", "bias"))


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("without", [("bias",), ("beta",), ("bias", "beta")], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_accuracy_without_optional_arguments(case, without, p):
    """The sum is not returned either, so no gradient comes from it."""
    seed = torch.tensor([3], device=case.device)
    keep = keep_count(p)
    mask = row_mask(seed, 19, 100, keep) if p else None
    assert_accurate(
        lambda **t: fastlm.add_layer_norm(**t, dropout_p=p, seed=seed, backend=case.backend),
        lambda **t: naive(**t, mask=mask, keep=keep)[0],
        {name: x for name, x in tensors(case, 19, 100).items() if name not in without},
        case.dtype,
    )


@pytest.mark.parametrize("case", long_cases(OP))
@given(rows=st.integers(1, 40), columns=st.integers(3, 600), p=st.sampled_from([0.0, 0.1, 0.5]))
@settings(max_examples=6)
def test_any_shape(case, rows, columns, p):
    check(case, rows, columns, p)


@pytest.mark.parametrize("case", [case for case in cases(OP) if case.values[0].dtype != torch.float32])
def test_rows_of_small_variance(case):
    """Here the rounding of the stored sum is most of the error of the gradient."""
    check(case, 14, 3)


@pytest.mark.parametrize("case", cases(OP))
def test_constant_rows(case):
    x = constant_rows(case, 768)
    t = {name: x for name, x in tensors(case, 1, 768).items() if name != "bias"} | {"x": x, "residual": 0.5 * x.flip(0)}
    op = partial(fastlm.add_layer_norm, backend=case.backend)
    assert_normalises_constant_rows(op, lambda **t: naive(**t)[0], t, case)


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("first", [None, 2**32 - 5, 2**40 + 1])
def test_forward_uses_the_mask_of_all_backends(case, first):
    rows, columns, keep = 21, 333, keep_count(0.3)
    seed = torch.tensor([2**62 + 7], device=case.device)
    x = torch.ones(rows, columns, dtype=case.dtype, device=case.device)
    gamma = torch.ones(columns, device=case.device)
    first = None if first is None else torch.tensor([first], device=case.device)
    options = {"dropout_p": 0.3, "seed": seed, "first_row": first, "return_sum": True, "backend": case.backend}
    _, s = fastlm.add_layer_norm(x, torch.zeros_like(x), gamma, **options)
    assert torch.equal(s != 0, row_mask(seed, rows, columns, keep, first))
    assert torch.equal(s[s != 0], torch.full_like(s[s != 0], 256 / keep))


@pytest.mark.parametrize("case", cases(OP))
def test_repeats_and_compiles(case):
    seed = torch.tensor([5], device=case.device)
    options = {"dropout_p": 0.1, "seed": seed, "return_sum": True, "backend": case.backend}
    assert_repeats(lambda **t: fastlm.add_layer_norm(**t, **options), tensors(case, 70, 96), case.dtype)


@pytest.mark.parametrize("case", cases(OP))
def test_optional_arguments_and_their_gradients(case):
    """Without bias and beta, with a gradient only from the sum or only from y, and with inputs that need none."""
    t = tensors(case, 6, 40)
    gamma = t["gamma"].clone().requires_grad_()
    x = t["x"].clone().requires_grad_()
    y, s = fastlm.add_layer_norm(x, t["residual"], gamma, return_sum=True, backend=case.backend)
    (gx,) = torch.autograd.grad(s.float().sum(), x, retain_graph=True)
    assert torch.equal(gx, torch.ones_like(gx))
    (ggamma,) = torch.autograd.grad(y.float().sum(), gamma)
    expected = F.layer_norm(t["x"].double() + t["residual"].double(), (40,)).sum(0)
    # xhat is computed from the stored sum; its values are under 8 and have been rounded.
    assert (ggamma.double() - expected).abs().max() <= 6 * 8 * torch.finfo(case.dtype).eps


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("shape", [(0, 16), (2, 0, 16), (1, 1), (1, 16)], ids=str)
def test_empty_and_single(case, shape):
    x = torch.randn(shape, dtype=case.dtype, device=case.device).requires_grad_()
    gamma = torch.ones(shape[-1], dtype=case.dtype, device=case.device).requires_grad_()
    y = fastlm.add_layer_norm(x, x, gamma, backend=case.backend)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert torch.isfinite(gamma.grad).all()
    assert x.numel() or not gamma.grad.any()


@pytest.mark.parametrize("case", cases(OP))
def test_one_column(case):
    """A row of one element equals its mean, so y is beta, and all gradients except beta's are 0 up to rounding.

    That rounding is (s - mean), with |s| < 8 in float32, times rstd = 1 / sqrt(1e-5) = 316.
    """
    result = evaluate(
        lambda **t: fastlm.add_layer_norm(**t, backend=case.backend), tensors(case, 33, 1), case.dtype, ("gamma",)
    )
    assert torch.equal(result["out0"], tensors(case, 33, 1)["beta"].expand(33, 1))
    bound = 33 * 8 * 317 * torch.finfo(torch.float32).eps
    for name in ("dx", "dresidual", "dgamma", "dbias"):
        assert result[name].abs().max() <= bound * (317 if name != "dgamma" else 1)


@pytest.mark.parametrize("case", cases(OP))
def test_strided_and_unaligned(case):
    base = torch.randn(6, 3, 65, dtype=case.dtype, device=case.device)
    x, residual = base[:, 1, 1:], base.transpose(0, 1)[2, :, :64]
    gamma, beta = base[0, 0, 1:], base[1, 1, :64]
    y = fastlm.add_layer_norm(x, residual, gamma, beta, backend=case.backend)
    contiguous = (t.clone() for t in (x, residual, gamma, beta))
    expected = fastlm.add_layer_norm(*contiguous, backend=case.backend)
    if (case.backend, case.device) == ("reference", "cuda"):  # torch's sums there depend on the alignment
        torch.testing.assert_close(y, expected)
    else:
        assert torch.equal(y, expected)


@pytest.mark.parametrize("case", cases(OP))
def test_unaligned_rows(case):
    """Contiguous rows, and gradients, that begin one element after an address aligned to 16 bytes."""
    flat = torch.randn(4, 8 + 6 * 64, dtype=case.dtype, device=case.device)

    def run(x, residual, dy, dsum):
        leaves = [t.requires_grad_() for t in (x, residual)]
        gamma = torch.ones(64, dtype=case.dtype, device=case.device)
        out = fastlm.add_layer_norm(*leaves, gamma, return_sum=True, backend=case.backend)
        return *out, *torch.autograd.grad(out, leaves, (dy, dsum))

    unaligned = [row[1:-7].view(6, 64) for row in flat]
    assert all(t.data_ptr() % 16 for t in unaligned)
    aligned = [t.clone() for t in unaligned]
    assert all(torch.equal(a, b) for a, b in zip(run(*unaligned), run(*aligned), strict=True))


@pytest.mark.parametrize("case", [p for p in cases(OP) if p.values[0].device == "cuda"])
def test_cuda_graph_draws_fresh_masks(case):
    t = tensors(case, 40, 96)
    options = {"dropout_p": 0.1, "return_sum": True, "backend": case.backend}

    def step(seed):
        leaves = {name: x.detach().requires_grad_() for name, x in t.items()}
        out = fastlm.add_layer_norm(**leaves, **options, seed=seed)
        return *out, *torch.autograd.grad(out, list(leaves.values()), (t["x"], t["residual"]))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(draw_seeds(1, "cuda"))  # compiles, which is impossible during a capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        seed = draw_seeds(1, "cuda")
        captured = step(seed)
    seen = set()
    for _ in range(3):
        graph.replay()
        seen.add(seed.item())
        assert all(torch.equal(a, b) for a, b in zip(captured, step(seed), strict=True))
    assert len(seen) == 3


@pytest.mark.parametrize("case", cases(OP))
def test_opcheck(case):
    t = {name: x.requires_grad_() for name, x in tensors(case, 4, 24).items()}
    seed = torch.tensor([5], device=case.device)
    rest = (t["bias"], t["gamma"], t["beta"], seed, seed, 230, 1e-5, True, False, case.backend)
    assert_passes_opcheck(OP, t["x"], t["residual"], *rest)


def tensors_for_keep_sum_false(case: Case, rows: int, columns: int) -> dict[str, torch.Tensor]:
    """Returns `tensors` with every gamma far from 0, since xhat = (y - beta) / gamma."""
    t = tensors(case, rows, columns)
    return t | {"gamma": 1 + 0.5 * t["gamma"].tanh()}  # in [0.5, 1.5]


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("without", [(), ("beta", "bias")], ids=str)
def test_gradients_from_the_output(case, without):
    """With keep_sum=False the gradients are the same up to the rounding of y, because xhat = (y - beta) / gamma.

    Let u bound the error of xhat. Here u = 2 eps max |y / gamma|: four times the rounding of y, which leaves room for
    float32 arithmetic. Since ds = rstd (g - mean(g) - xhat mean(g xhat)), the error of ds is at most

        rstd u (|mean(g xhat)| + max |xhat| mean |g|)
    """
    rows, columns, eps = 9, 300, torch.finfo(case.dtype).eps
    t = {name: x for name, x in tensors_for_keep_sum_false(case, rows, columns).items() if name not in without}
    options = {"dropout_p": 0.1, "seed": torch.tensor([7], device=case.device), "backend": case.backend}
    from_sum = evaluate(lambda **t: fastlm.add_layer_norm(**t, **options), t, case.dtype)
    from_y = evaluate(lambda **t: fastlm.add_layer_norm(**t, **options, keep_sum=False), t, case.dtype, may_wait=False)
    assert torch.equal(from_sum["out0"], from_y["out0"])
    if "beta" in t:
        assert torch.equal(from_sum["dbeta"], from_y["dbeta"])
    # All inputs are under 6, also after dropout's scale of 256 / 230. rstd is about 2/3.
    u = 2 * eps * (from_sum["out0"].double() / t["gamma"].double()).abs().max().item()
    xhat, g = 6, 6 * 1.5
    ds = 1 * u * 2 * xhat * g + eps * from_sum["dresidual"].double().abs().max().item()
    bounds = {"dx": 2 * ds, "dresidual": ds, "dbias": 2 * rows * ds, "dgamma": rows * 6 * u + eps * rows * xhat * 6}
    for name, bound in bounds.items():
        if name in from_y:
            assert (from_y[name].double() - from_sum[name].double()).abs().max() <= bound, name
    assert not torch.equal(from_sum["dresidual"], from_y["dresidual"])  # otherwise the backward did not read y


@pytest.mark.parametrize("case", cases(OP))
def test_sum_is_not_kept(case):
    """With keep_sum=False the only (rows, columns) tensor saved for the backward is y."""
    t = {name: x.requires_grad_() for name, x in tensors_for_keep_sum_false(case, 6, 40).items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        y = fastlm.add_layer_norm(**t, keep_sum=False, backend=case.backend)
    assert [x.data_ptr() for x in saved if x.numel() == y.numel()] == [y.data_ptr()]


@pytest.mark.parametrize("case", cases(OP))
def test_opcheck_from_the_output(case):
    t = {name: x.requires_grad_() for name, x in tensors_for_keep_sum_false(case, 4, 24).items()}
    seed = torch.tensor([5], device=case.device)
    rest = (t["bias"], t["gamma"], t["beta"], seed, seed, 230, 1e-5, False, True, case.backend)
    assert_passes_opcheck(OP, t["x"], t["residual"], *rest)


@pytest.mark.parametrize("backend", ["reference", "triton", "cuda"])
def test_small_gammas_are_refused_from_the_output(backend):
    if torch.cuda.is_available() and backend != "reference":
        pytest.skip("a GPU has no interpreter and no emulator: test_small_gammas_fail_on_the_device")
    x, gamma = torch.randn(2, 8), torch.ones(8)
    gamma[3] = 0.015
    options = {"keep_sum": False, "backend": backend}
    fastlm.add_layer_norm(x, x, gamma, **options)  # accepted: no gradient is needed
    with pytest.raises(ValueError, match=r"every \|gamma\| to be at least 0.015625 .* got gamma\[3\] = 0.015"):
        fastlm.add_layer_norm(x, x, gamma.requires_grad_(), **options)
    with pytest.raises(ValueError, match=r"got gamma\[0\] = 1"):
        fastlm.add_layer_norm(x, x, torch.ones(8, requires_grad=True), torch.full((8,), -65.0), **options)


@pytest.mark.gpu
def test_small_gammas_fail_on_the_device():
    """Runs in another process, because a failed device assertion ends the CUDA context."""
    code = """
import torch, fastlm
x = torch.randn(2, 8, device="cuda")
fastlm.add_layer_norm(x, x, torch.full((8,), {}, device="cuda", requires_grad=True), keep_sum=False)
torch.cuda.synchronize()
"""
    runs = [subprocess.run([sys.executable, "-c", code.format(g)], capture_output=True, text=True) for g in (1.0, 0.01)]
    assert [run.returncode == 0 for run in runs] == [True, False], runs
    assert "device-side assert" in runs[1].stderr


def test_only_the_reference_takes_float64():
    x = torch.randn(3, 8, dtype=torch.float64)
    gamma = torch.ones(8, dtype=torch.float64)
    assert fastlm.add_layer_norm(x, x, gamma).dtype == torch.float64
    with pytest.raises(RuntimeError, match="not float64"):
        fastlm.add_layer_norm(x, x, gamma, backend="cuda")
    assert backends.choose(SPECS[OP], "auto", backends.Call("cuda", torch.float64)) == "reference"


def test_second_derivative_raises():
    assert_differentiable_once(fastlm.add_layer_norm, tensors(Case("reference", torch.float32, "cpu"), 3, 8))


X = torch.zeros(3, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"x": X.int()}, TypeError, "x must be float32.* got int32"),
        ({"residual": X.half()}, TypeError, "residual must have the activations' dtype float32, got float16"),
        ({"residual": X[:2]}, ValueError, r"residual must have shape \(3, 8\), got \(2, 8\)"),
        ({"gamma": torch.ones(7)}, ValueError, r"gamma must have shape \(8,\), got \(7,\)"),
        ({"beta": torch.ones(8, dtype=torch.bfloat16)}, TypeError, "beta must be float32, got bfloat16"),
        ({"bias": torch.ones(8, device="meta")}, ValueError, "bias is on meta, but the activations are on cpu"),
        ({"dropout_p": 1.0}, ValueError, r"dropout_p must be in \[0, 1\), got 1.0"),
        ({"dropout_p": 0.001}, ValueError, "rounds to 0: give 0, or a value from"),
        ({"dropout_p": 0.1}, ValueError, "needs a seed"),
        ({"dropout_p": 0.1, "seed": torch.tensor([1.0])}, TypeError, "seed must hold one int64, got float32"),
        (
            {"dropout_p": 0.1, "seed": torch.tensor([1]), "first_row": 3},
            TypeError,
            "first_row must be .* int64, got int",
        ),
        ({"eps": -1.0}, ValueError, "eps must be at least 0"),
        ({"return_sum": True, "keep_sum": False}, ValueError, "give it or keep_sum=False, not both"),
        ({"backend": "tirton"}, ValueError, "backend must be one of auto, reference, cpu, triton, cuda"),
    ],
)
def test_bad_arguments(arguments, error, sentence):
    good = {"x": X, "residual": X, "gamma": torch.ones(8)}
    with pytest.raises(error, match=sentence):
        fastlm.add_layer_norm(**(good | arguments))
