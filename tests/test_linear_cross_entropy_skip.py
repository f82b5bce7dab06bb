"""linear_cross_entropy with skip_ignored: products of the rows that count alone give the same losses and gradients."""

from __future__ import annotations

import pytest
import torch
from checks import Case, assert_accurate, assert_passes_opcheck, cases
from test_linear_cross_entropy import OP, module, naive, targets_of, tensors

import fastlm
from fastlm.ops import _counted_rows

HALF = [case for case in cases(OP) if case.values[0].dtype == torch.bfloat16]
ON_A_GPU = [case for case in cases(OP) if case.values[0].device == "cuda"]


def check(case: Case, *, rows: int = 61, bias: bool = True, weighted: bool = False, **options) -> None:
    """Compares with plain torch. 48 columns, so that grouped products serve bfloat16."""
    targets = targets_of(case, rows, 70)
    targets[torch.arange(rows, device=case.device) % 7 > 1] = -100
    if weighted:
        options["row_weights"] = torch.rand(rows, generator=torch.Generator().manual_seed(3)).to(case.device)
    assert_accurate(
        lambda **t: fastlm.linear_cross_entropy(
            **t, targets=targets, backend=case.backend, skip_ignored=True, **options
        ),
        lambda **t: naive(**t, targets=targets, **options, stored=case.dtype),
        tensors(case, rows, 48, 70, bias),
        case.dtype,
    )


@pytest.fixture(params=["selected", "grouped"])
def products(request, monkeypatch) -> str:
    """Chooses the products: a CPU selects rows, and takes a GPU's grouped products if it is made to."""
    if request.param == "grouped":
        monkeypatch.setattr(_counted_rows, "has_grouped_products", lambda x, backend: True)
        monkeypatch.setattr(_counted_rows, "counted_first", lambda t, ignored: torch.argsort(t == ignored, stable=True))
    return request.param


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_accuracy(case, reduction):
    check(case, reduction=reduction)


@pytest.mark.parametrize("case", HALF)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [8, 61])
def test_the_rows_of_every_chunk(case, bias, rows, products, monkeypatch):
    """In chunks of 8 rows the first is full, one is part full, and the others are empty."""
    monkeypatch.setattr(module, "chunk_rows", lambda *_: 8)
    check(case, rows=rows, bias=bias)
    check(case, rows=rows, bias=bias, reduction="sum", weighted=True, label_smoothing=0.1, z_loss=0.01)


@pytest.mark.parametrize("case", HALF)
def test_rows_without_a_target_may_be_nan_and_there_may_be_no_other(case, products):
    t = tensors(case, 40, 48, 70)
    targets = targets_of(case, 40, 70)
    t["x"][targets == -100] = torch.nan
    for parameter in t.values():
        parameter.requires_grad_()
    rest = {"backend": case.backend, "skip_ignored": True}
    loss = fastlm.linear_cross_entropy(**t, targets=targets, **rest)
    gradients = torch.autograd.grad(loss, list(t.values()))
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients)
    loss = fastlm.linear_cross_entropy(**t, targets=torch.full_like(targets, -100), **rest)
    gradients = torch.autograd.grad(loss, list(t.values()))
    assert loss == 0 and not any(g.any() for g in gradients)


@pytest.mark.parametrize("case", ON_A_GPU)
def test_the_host_does_not_wait(case):
    t, targets = tensors(case, 61, 48, 70), targets_of(case, 61, 70)
    options = {"targets": targets, "backend": case.backend, "skip_ignored": True}
    fastlm.linear_cross_entropy(**t, **options)  # compiles kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        fastlm.linear_cross_entropy(**t, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("case", HALF)
def test_opcheck(case):
    t, targets = tensors(case, 24, 48, 70), targets_of(case, 24, 70)
    options = (-100, "mean", 0.0, 0.0, True, True, True, True, case.backend)
    assert_passes_opcheck(OP, t["x"], t["weight"], t["bias"], targets, None, None, *options)
