"""linear_cross_entropy: the softmax cross-entropy of x W^T + bias, in every backend and dtype that its SPEC names."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from checks import (
    Case,
    assert_accurate,
    assert_differentiable_once,
    assert_passes_opcheck,
    assert_repeats,
    cases,
    evaluate,
    inputs,
    long_cases,
    rounded,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastlm
from fastlm import backends

OP = "linear_cross_entropy"
module = importlib.import_module("fastlm.ops.linear_cross_entropy")  # its function has the same name


def tensors(case: Case, rows: int, columns: int, vocabulary: int, bias: bool = True) -> dict[str, torch.Tensor]:
    shapes = {"x": (rows, columns), "weight": (vocabulary, columns)} | ({"bias": (vocabulary,)} if bias else {})
    return inputs(case.device, case.dtype, **shapes)


def targets_of(case: Case, rows: int, vocabulary: int) -> torch.Tensor:
    targets = torch.randint(0, vocabulary, (rows,), generator=torch.Generator().manual_seed(9))
    targets[1::4] = -100
    return targets.to(case.device)


def naive(
    x, weight, targets, bias=None, row_weights=None, reduction="mean", label_smoothing=0.0, z_loss=0.0, stored=None
):
    """Computes the loss in plain torch ops. Logits and their gradient are rounded to `stored`, the dtype in which the
    op stores them; in float64 nothing is rounded."""
    logits = F.linear(x, weight, bias)
    if logits.dtype != torch.float64:
        stored = stored or logits.dtype
        logits = rounded(logits.float(), stored)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient.to(stored).float())
    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    counted = (targets != -100).to(losses.dtype)
    losses = losses + z_loss * torch.logsumexp(logits, -1).square() * counted
    w = counted if row_weights is None else row_weights.to(losses.dtype) * counted
    losses = losses * w
    return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / w.sum()}[reduction]


def check(case: Case, rows: int, columns: int, vocabulary: int, *, wide=(), bias=True, **options) -> None:
    targets = targets_of(case, rows, vocabulary)
    assert_accurate(
        lambda **t: fastlm.linear_cross_entropy(**t, targets=targets, backend=case.backend, **options),
        lambda **t: naive(**t, targets=targets, **options, stored=case.dtype),
        tensors(case, rows, columns, vocabulary, bias),
        case.dtype,
        wide=wide,
    )


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(26, 64, 1000), (9, 48, 511), (3, 8, 7), (3, 16, 20000)], ids=str)
def test_accuracy(case, reduction, shape):
    check(case, *shape, reduction=reduction)
    check(case, *shape, reduction=reduction, bias=False)


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_accuracy_of_the_variants(case, reduction):
    weights = torch.rand(13, device=case.device)
    check(case, 13, 32, 257, reduction=reduction, label_smoothing=0.1)
    check(case, 13, 32, 257, reduction=reduction, z_loss=1e-2)
    check(case, 13, 32, 257, reduction=reduction, row_weights=weights)
    check(case, 13, 32, 257, reduction=reduction, row_weights=weights, label_smoothing=0.2, z_loss=1e-3)
    check(case, 13, 32, 257, reduction=reduction, wide=("weight", "bias"))


@pytest.mark.parametrize("case", long_cases(OP))
@given(rows=st.integers(8, 20), columns=st.integers(16, 70), vocabulary=st.integers(16, 300))
@settings(max_examples=6)
def test_any_shape(case, rows, columns, vocabulary):
    check(case, rows, columns, vocabulary)


@pytest.mark.parametrize("case", cases(OP))
def test_one_element(case):
    """With V = 1 the probability is 1. With V = 2 it is p = sigmoid(difference of the logits), and dloss = p - 1.

    A gradient is rounded to the dtype four times: dlogits, their product, its scaling, and the result.
    """
    x, one = (torch.tensor([[value]], dtype=case.dtype, device=case.device) for value in (0.5, 1.0))
    target = torch.tensor([0], device=case.device)
    result = evaluate(
        lambda x, weight: fastlm.linear_cross_entropy(x, weight, target, backend=case.backend),
        {"x": x, "weight": one},
        case.dtype,
    )
    assert all(not value.any() for value in result.values())

    leaves = {"x": x, "weight": torch.cat([one, -one]), "bias": torch.cat([one[0], one[0]])}
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    loss = fastlm.linear_cross_entropy(**leaves, targets=target, backend=case.backend)
    loss.backward()
    p = 1 / (1 + math.exp(-1.0))  # logits 1.5 and 0.5
    assert abs(loss.item() + math.log(p)) <= 4 * torch.finfo(torch.float32).eps
    expected = {"x": [2 * (p - 1)], "weight": [0.5 * (p - 1), 0.5 * (1 - p)], "bias": [p - 1, 1 - p]}
    for name, values in expected.items():
        exact = torch.tensor(values, dtype=torch.float64, device=case.device)
        error = leaves[name].grad.flatten().double() - exact
        assert (error.abs() <= 4 * torch.finfo(case.dtype).eps / 2 * exact.abs()).all(), name


@pytest.mark.parametrize("case", cases(OP))
def test_many_chunks(case, monkeypatch):
    """Chunks of 4 rows, and a last one of 3."""
    monkeypatch.setattr(module, "chunk_rows", lambda *_: 4)
    check(case, 11, 16, 50)
    check(case, 11, 16, 50, reduction="none", wide=("weight", "bias"))


def test_chunks_follow_from_the_shape():
    assert module.chunk_rows(32768, 40478, "cuda") == 5632
    assert module.chunk_rows(4915, 30522, "cuda") == 4915
    assert module.chunk_rows(10, 10**9, "cuda") == 10
    assert module.chunk_rows(1000, 10**9, "cuda") == 128
    assert module.chunk_rows(8192, 30522, "cpu") == 256
    assert module.chunk_rows(2048, 512, "cpu") == 2048


@pytest.mark.parametrize("case", cases(OP))
def test_gradients_that_are_not_needed_are_not_computed(case):
    t = tensors(case, 5, 8, 11)
    targets = targets_of(case, 5, 11)
    for wanted in t:
        leaves = {name: x.clone().requires_grad_(name == wanted) for name, x in t.items()}
        everything = {name: x.clone().requires_grad_() for name, x in t.items()}
        fastlm.linear_cross_entropy(**leaves, targets=targets, backend=case.backend).backward()
        fastlm.linear_cross_entropy(**everything, targets=targets, backend=case.backend).backward()
        assert torch.equal(leaves[wanted].grad, everything[wanted].grad)
        assert all(leaves[name].grad is None for name in t if name != wanted)


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_main_grad_accumulates(case, reduction):
    t = {name: x.requires_grad_() for name, x in tensors(case, 9, 8, 11).items()}
    targets = targets_of(case, 9, 11)
    options = {"targets": targets, "reduction": reduction, "backend": case.backend}
    t["weight"] = t["weight"].detach().float().requires_grad_()
    fastlm.linear_cross_entropy(**t, **options).sum().backward()
    main_grad = torch.ones_like(t["weight"])
    expected = 1 + 2 * t["weight"].grad
    t["weight"].grad = None
    for _ in range(2):
        fastlm.linear_cross_entropy(**t, **options, main_grad=main_grad).sum().backward()
    assert t["weight"].grad is None
    assert (main_grad - expected).abs().max() <= 4 * torch.finfo(torch.float32).eps * expected.abs().max()


@pytest.mark.parametrize("case", long_cases(OP))
def test_the_mean_scales_all_gradients_alike(case):
    """The factor of "mean" is not rounded to the activations' dtype: in bfloat16, 1 / 255 would be 0.4 % off."""
    targets = torch.arange(255, device=case.device) % 50
    t = tensors(case, 255, 64, 50, bias=False)
    options = {"targets": targets, "backend": case.backend}
    whole, mean = (
        evaluate(
            lambda reduction=reduction, **t: fastlm.linear_cross_entropy(**t, **options, reduction=reduction),
            t,
            case.dtype,
        )
        for reduction in ("sum", "mean")
    )
    for name in ("dx", "dweight"):
        a, b = whole[name].double(), mean[name].double() * 255
        assert abs((a * b).sum() / a.square().sum() - 1) < 1e-3, name


@pytest.mark.parametrize("case", cases(OP))
def test_no_targets_give_a_loss_of_0(case):
    """If all targets are ignored, or there are no rows, the loss and all gradients are 0."""
    for rows in (4, 0):
        t = {name: x.requires_grad_() for name, x in tensors(case, rows, 8, 11).items()}
        targets = torch.full((rows,), -100, device=case.device)
        loss = fastlm.linear_cross_entropy(**t, targets=targets, backend=case.backend)
        loss.backward()
        assert loss.item() == 0
        assert all(x.grad is not None and not x.grad.any() for x in t.values())


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ignored_rows_may_be_anything(case, reduction):
    """NaN and infinity in ignored rows, in their weights and in their losses' gradients change no result."""
    targets = targets_of(case, 10, 70)
    ignored = targets == -100
    t = tensors(case, 10, 16, 70)
    weights, dlosses = torch.rand(10, device=case.device), torch.rand(10, device=case.device)

    def outputs() -> tuple[torch.Tensor, ...]:
        leaves = {name: x.clone().requires_grad_() for name, x in t.items()}
        options = {"row_weights": weights, "reduction": reduction, "label_smoothing": 0.1, "z_loss": 0.1}
        loss = fastlm.linear_cross_entropy(**leaves, targets=targets, **options, backend=case.backend)
        dloss = dlosses if reduction == "none" else torch.ones_like(loss)
        return loss, *torch.autograd.grad(loss, tuple(leaves.values()), dloss)

    clean = outputs()
    junk = torch.tensor([torch.nan, torch.inf], device=case.device).repeat(2)[: ignored.sum()]
    t["x"][ignored], weights[ignored], dlosses[ignored] = junk.to(case.dtype)[:, None], junk, junk
    for expected, actual in zip(clean, outputs(), strict=True):
        assert torch.isfinite(expected).all()
        assert torch.equal(expected, actual)
    assert not clean[1][ignored].any()


@pytest.mark.parametrize("case", cases(OP))
def test_leading_dimensions_and_strides(case):
    t = tensors(case, 12, 8, 11)
    targets = targets_of(case, 12, 11)
    flat = fastlm.linear_cross_entropy(**t, targets=targets, reduction="none", backend=case.backend)
    t["x"] = t["x"].view(3, 4, 8).transpose(0, 1)
    shaped = targets.view(3, 4).transpose(0, 1)
    losses = fastlm.linear_cross_entropy(**t, targets=shaped, reduction="none", backend=case.backend)
    assert losses.shape == (4, 3)
    assert torch.equal(losses.transpose(0, 1).reshape(-1), flat)


@pytest.mark.parametrize("case", cases(OP))
def test_strided_rows(case):
    """Every second row, target and row weight of larger tensors. The gradient of the losses is one expanded number."""
    t = tensors(case, 12, 8, 11)
    x = {"x": t["x"][::2].clone(), "targets": targets_of(case, 12, 11)[::2].clone()}
    weights = torch.rand(12, device=case.device)
    strided = {"x": t["x"][::2], "targets": targets_of(case, 12, 11)[::2], "row_weights": weights[::2]}
    results = []
    for rows in (x | {"row_weights": weights[::2].clone()}, strided):
        weight = t["weight"].clone().requires_grad_()
        options = {"bias": t["bias"], "reduction": "none", "backend": case.backend}
        losses = fastlm.linear_cross_entropy(**rows, weight=weight, **options)
        losses.sum().backward()
        results.append((losses, weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("case", [c for c in cases(OP) if c.values[0].backend != "reference"])
def test_rows_in_place(case):
    """cross_entropy_rows replaces logits by gradients. They are 0 in the padding (NaN before) and in ignored rows, and
    NaN in rows whose target is out of range."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 128, generator=generator).to(case.device, case.dtype)
    logits[:, 70:] = torch.nan
    targets = torch.tensor([3, -100, 69, 70], device=case.device)
    losses, lse = (torch.full((4,), -1.0, device=case.device) for _ in range(2))
    expected = torch.nn.functional.log_softmax(logits[:, :70].double(), dim=-1)
    launch = backends.launchers(case.backend, OP).cross_entropy_rows
    launch(logits, logits, targets, None, losses, lse, 70, -100, 0.1, 0.0)
    assert not logits[:3, 70:].any() and not logits[1].any()
    assert losses[1] == lse[1] == 0
    assert losses[3].isnan() and logits[3, :70].isnan().all()
    smoothed = -0.9 * expected[[0, 2], targets[[0, 2]]] - 0.1 * expected[[0, 2]].mean(-1)
    assert (losses[[0, 2]] - smoothed).abs().max() <= 4e-6
    # The gradients of a row sum to 0 up to rounding: each is at most 1, and rounded to the dtype.
    assert logits[[0, 2]].float().sum(-1).abs().max() <= 70 * torch.finfo(case.dtype).eps


class TensorMemory(TorchDispatchMode):
    """Records the peak memory of the tensors that ops allocate, except `inputs`, and the size of the largest."""

    def __init__(self, *inputs: torch.Tensor):
        super().__init__()
        self.known = {x.untyped_storage()._cdata for x in inputs}
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.storages = {key: entry for key, entry in self.storages.items() if not entry[0].expired()}
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in self.known:
                storage = x.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                self.largest = max(self.largest, storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))
        return out


@pytest.mark.parametrize("case", cases(OP))
def test_logits_of_only_one_chunk_exist(case, monkeypatch):
    """The peak memory is one chunk of logits, the gradients and the padded parameters."""
    rows, columns, vocabulary, chunk = 64, 16, 1000, 8
    monkeypatch.setattr(module, "chunk_rows", lambda *_: chunk)
    t = tensors(case, rows, columns, vocabulary)
    arguments = (*t.values(), targets_of(case, rows, vocabulary), None, (-100, 0.1, 0.1), (True,) * 3, case.backend)
    size, padded = t["x"].element_size(), 1024
    kept = padded * (columns + 1) * (size + 4) + rows * columns * size + 2 * 4 * rows
    temporary = 4 * padded + 1024  # a chunk's part of dbias; its targets and other vectors
    bound = kept + temporary + chunk * padded * size
    if case.device == "cpu":
        if size < 4:
            bound += (
                4 * chunk * (padded + columns)
            )  # a CPU has no product of half into float32: both factors are copied
        with TensorMemory(*(x for x in arguments if isinstance(x, torch.Tensor))) as memory:
            module._over_all_rows(*arguments)
        peak = memory.peak
        assert memory.largest < rows * vocabulary * size
    else:
        module._over_all_rows(*arguments)  # the first call allocates cuBLAS's workspace
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        module._over_all_rows(*arguments)
        peak = torch.cuda.max_memory_allocated() - before
        bound += 20 * 512  # allocations are rounded up
    if case.backend != "reference":  # the reference makes several float32 copies of the chunk
        assert peak <= bound
        assert bound < kept + rows * vocabulary * size


PEAK = """
import resource, sys, torch, fastlm
torch.set_num_threads(1)
x, weight, bias = (torch.randn(s, requires_grad=True) for s in ((2048, 64), (30522, 64), (30522,)))
targets = torch.randint(30522, (2048,))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[1] == "plain":
    loss = torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, weight, bias), targets)
else:
    loss = fastlm.linear_cross_entropy(x, weight, targets, bias=bias)
loss.backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def peak_kib(which: str) -> int:
    """Returns the memory that forward and backward need beyond the inputs, measured in another process."""
    run = subprocess.run([sys.executable, "-P", "-c", PEAK, which], capture_output=True, text=True, check=True)
    return int(run.stdout)


def test_peak_memory_on_the_cpu_is_a_fraction_of_what_it_replaces():
    """A chunk of 256 x 30522 logits is 31 MiB, all 2048 rows are 250; plain torch holds them more than twice."""
    assert peak_kib("ours") < peak_kib("plain") / 3


@pytest.mark.parametrize("case", cases(OP))
def test_repeats_and_compiles(case):
    targets = targets_of(case, 10, 90)
    options = {"targets": targets, "backend": case.backend}
    t = tensors(case, 10, 16, 90)
    assert_repeats(lambda **t: fastlm.linear_cross_entropy(**t, **options), t, case.dtype)
    assert_repeats(lambda **t: fastlm.linear_cross_entropy(**t, **options, reduction="none"), t, case.dtype)


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck(case, reduction):
    t = [x.requires_grad_() for x in tensors(case, 5, 8, 11).values()]
    rest = (targets_of(case, 5, 11), None, None, -100, reduction, 0.1, 0.01, True, True, True, False, case.backend)
    assert_passes_opcheck(OP, *t, *rest)


def test_second_derivative_raises():
    case = Case("reference", torch.float32, "cpu")
    for reduction in module.REDUCTIONS:
        options = {"targets": targets_of(case, 5, 11), "reduction": reduction}
        assert_differentiable_once(
            lambda options=options, **t: fastlm.linear_cross_entropy(**t, **options), tensors(case, 5, 8, 11)
        )


X, W, T = torch.zeros(3, 8), torch.zeros(11, 8), torch.tensor([0, -100, 10])


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"weight": W[0]}, ValueError, r"weight must have shape \(V, E\), got \(8,\)"),
        ({"weight": torch.zeros(11, 9)}, ValueError, r"weight must have shape \(11, 8\), got \(11, 9\)"),
        ({"weight": W.half()}, TypeError, "weight must be float32, got float16"),
        ({"bias": torch.zeros(3)}, ValueError, r"bias must have shape \(11,\), got \(3,\)"),
        ({"targets": T.int()}, TypeError, "targets must be int64, got int32"),
        ({"targets": T[:2]}, ValueError, r"targets must have shape \(3,\), got \(2,\)"),
        ({"targets": T + 1}, ValueError, r"targets must lie in \[0, 11\) or equal ignore_index -100, got -99"),
        ({"row_weights": torch.ones(3, requires_grad=True)}, ValueError, "row_weights take no gradient"),
        ({"reduction": "avg"}, ValueError, "reduction must be one of mean, sum, none, got 'avg'"),
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], got 1.5"),
        ({"z_loss": -1.0}, ValueError, "z_loss must be at least 0, got -1.0"),
        ({"main_grad": torch.zeros(8, 11)}, ValueError, r"main_grad must have shape \(11, 8\), got \(8, 11\)"),
    ],
)
def test_bad_arguments(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        fastlm.linear_cross_entropy(**({"x": X, "weight": W, "targets": T} | arguments))
