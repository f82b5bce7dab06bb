"""cross_entropy: the softmax cross-entropy of logits in memory, in every backend and dtype that its SPEC names."""

from __future__ import annotations

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
    inputs,
    long_cases,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlm
from fastlm import backends
from fastlm.ops import SPECS

OP = "cross_entropy"


def targets_of(case: Case, rows: int, vocabulary: int) -> torch.Tensor:
    targets = torch.randint(0, vocabulary, (rows,), generator=torch.Generator().manual_seed(9))
    targets[1::4] = -100
    return targets.to(case.device)


def naive(logits, targets, row_weights=None, reduction="mean", label_smoothing=0.0, z_loss=0.0):
    """Computes the loss in plain torch ops, in float32 or float64."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    counted = (targets != -100).to(losses.dtype)
    losses = losses + z_loss * torch.logsumexp(logits, -1).square() * counted
    w = counted if row_weights is None else row_weights.to(losses.dtype) * counted
    losses = losses * w
    return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / w.sum()}[reduction]


def check(case: Case, rows: int, vocabulary: int, **options) -> None:
    targets = targets_of(case, rows, vocabulary)
    assert_accurate(
        lambda logits: fastlm.cross_entropy(logits, targets, backend=case.backend, **options),
        lambda logits: naive(logits, targets, **options),
        inputs(case.device, case.dtype, logits=(rows, vocabulary)),
        case.dtype,
    )


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(26, 1000), (9, 511), (9, 514), (3, 7), (3, 20001), (6, 64)], ids=str)
def test_accuracy(case, reduction, shape):
    check(case, *shape, reduction=reduction)


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_accuracy_of_the_variants(case, reduction):
    weights = torch.rand(13, device=case.device)
    check(case, 13, 257, reduction=reduction, label_smoothing=0.1)
    check(case, 13, 257, reduction=reduction, z_loss=1e-2)
    check(case, 13, 257, reduction=reduction, row_weights=weights)
    check(case, 13, 257, reduction=reduction, row_weights=weights, label_smoothing=0.2, z_loss=1e-3)


@pytest.mark.parametrize("case", long_cases(OP))
@given(rows=st.integers(8, 20), vocabulary=st.integers(2, 300))
@settings(max_examples=8)
def test_any_shape(case, rows, vocabulary):
    check(case, rows, vocabulary)


@pytest.mark.parametrize("case", cases(OP))
def test_the_logits_stay_and_parts_of_them_are_served(case):
    """Parts that start at any element, rows that are not adjacent, and further dimensions give what a copy gives."""
    whole = inputs(case.device, case.dtype, logits=(4, 3, 37))["logits"]
    before = whole.clone()
    anywhere = whole.flatten()[5 : 5 + 3 * 37].view(3, 37)
    for part in (whole[1:], whole[:, 1:], whole[..., 1:30], whole.transpose(0, 1), anywhere):
        targets = torch.arange(part[..., 0].numel(), device=case.device).view(part.shape[:-1]) % part.shape[-1]
        found = []
        for x in (part.detach(), part.clone(memory_format=torch.contiguous_format)):
            x.requires_grad_()
            losses = fastlm.cross_entropy(x, targets, reduction="none", backend=case.backend)
            assert losses.shape == targets.shape
            found.append((losses, *torch.autograd.grad(losses.sum(), x)))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert torch.equal(whole, before)


@pytest.mark.parametrize("case", cases(OP))
def test_ignored_rows_may_hold_nan(case):
    logits = inputs(case.device, case.dtype, logits=(4, 37))["logits"]
    targets = torch.tensor([3, -100, 36, 0], device=case.device)
    logits[1] = torch.nan
    logits.requires_grad_()
    for reduction in ("mean", "none"):
        loss = fastlm.cross_entropy(logits, targets, reduction=reduction, backend=case.backend)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.isfinite().all() and gradient.isfinite().all() and not gradient[1].any()
    none = fastlm.cross_entropy(logits, torch.full_like(targets, -100), backend=case.backend)
    assert none.item() == 0 and not torch.autograd.grad(none, logits)[0].any()


@pytest.mark.parametrize("case", cases(OP))
def test_one_class_and_no_rows(case):
    one = torch.tensor([[2.5]], dtype=case.dtype, device=case.device, requires_grad=True)
    loss = fastlm.cross_entropy(one, torch.tensor([0], device=case.device), backend=case.backend)
    assert loss.item() == 0 and torch.autograd.grad(loss, one)[0].item() == 0
    empty = torch.empty(0, 5, dtype=case.dtype, device=case.device, requires_grad=True)
    loss = fastlm.cross_entropy(empty, torch.empty(0, dtype=torch.int64, device=case.device), backend=case.backend)
    assert loss.item() == 0 and torch.autograd.grad(loss, empty)[0].shape == (0, 5)


@pytest.mark.parametrize("case", [c for c in cases(OP) if c.values[0].backend not in ("reference", "cpu")])
def test_a_target_out_of_range_is_nan(case):
    logits = torch.randn(3, 2 * 37, device=case.device).to(case.dtype)[:, :37].contiguous()
    losses, lse = (torch.full((3,), -1.0, device=case.device) for _ in range(2))
    dlogits = torch.zeros_like(logits)
    targets = torch.tensor([1, 37, -1], device=case.device)
    launch = backends.launchers(case.backend, SPECS[OP].kernels).cross_entropy_rows
    launch(logits, dlogits, targets, None, losses, lse, 37, -100, 0.0, 0.0)
    assert losses.isnan().tolist() == [False, True, True]
    assert dlogits.isnan().all(1).tolist() == [False, True, True]


@pytest.mark.parametrize("case", cases(OP))
def test_repeats_and_compiles(case):
    targets = targets_of(case, 10, 90)
    t = inputs(case.device, case.dtype, logits=(10, 90))
    for reduction in ("mean", "none"):
        options = {"targets": targets, "backend": case.backend, "reduction": reduction}
        assert_repeats(lambda logits, options=options: fastlm.cross_entropy(logits, **options), t, case.dtype)


@pytest.mark.parametrize("case", cases(OP))
def test_opcheck(case):
    logits = inputs(case.device, case.dtype, logits=(5, 11))["logits"].requires_grad_()
    assert_passes_opcheck(OP, logits, targets_of(case, 5, 11), None, -100, 0.1, 0.01, case.backend)


def test_second_derivative_raises():
    case = Case("reference", torch.float32, "cpu")
    targets = targets_of(case, 5, 11)
    assert_differentiable_once(
        lambda logits: fastlm.cross_entropy(logits, targets), inputs("cpu", torch.float32, logits=(5, 11))
    )


@pytest.mark.parametrize(
    ("error", "message", "logits", "targets", "options"),
    [
        (TypeError, "targets must be int64", torch.zeros(2, 3), torch.zeros(2).int(), {}),
        (ValueError, "targets must have shape", torch.zeros(2, 3), torch.zeros(3).long(), {}),
        (ValueError, "targets", torch.zeros(2, 3), torch.tensor([0, 3]), {}),
        (TypeError, "logits", torch.zeros(2, 3).long(), torch.zeros(2).long(), {}),
        (ValueError, "reduction must be one of", torch.zeros(2, 3), torch.zeros(2).long(), {"reduction": "max"}),
        (ValueError, "label_smoothing must be in", torch.zeros(2, 3), torch.zeros(2).long(), {"label_smoothing": 2}),
        (ValueError, "row_weights", torch.zeros(2, 3), torch.zeros(2).long(), {"row_weights": torch.ones(3)}),
    ],
)
def test_errors_say_what_would_be_right(error, message, logits, targets, options):
    with pytest.raises(error, match=message):
        fastlm.cross_entropy(logits, targets, **options)


def test_autocast_leaves_the_logits_as_they_are():
    logits, targets = torch.randn(4, 9), torch.tensor([0, 1, 2, 8])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fastlm.cross_entropy(logits, targets), fastlm.cross_entropy(logits, targets, backend="cpu"))
    assert abs(fastlm.cross_entropy(logits, targets) - F.cross_entropy(logits, targets)) < 1e-6
