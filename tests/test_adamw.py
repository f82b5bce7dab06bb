"""AdamW over many tensors, with clipping, in every backend and dtype of the table."""

from __future__ import annotations

import pytest
import torch
from checks import cases
from torch import Tensor

import fastlm

OP = "adamw"
SHAPES = [(3,), (1,), (100, 77), (8192,), (9000, 5), (0,), (65,), (2, 3, 4)]
HYPER = {"betas": (0.9, 0.99), "eps": 1e-6}
NORM_ERROR = 60960**0.5 * 2**-24  # what rounding costs a float32 sum of all elements, one after another


def tensors(dtype: torch.dtype, device: str, shapes=SHAPES) -> tuple[list[Tensor], ...]:
    generator = torch.Generator().manual_seed(1)
    parameters, gradients = ([torch.randn(s, generator=generator).to(dtype).to(device) for s in shapes] for _ in "pg")
    wide = torch.promote_types(dtype, torch.float32)
    first = [0.1 * torch.randn(s, generator=generator).to(device, wide) for s in shapes]
    second = [torch.rand(s, generator=generator).to(device, wide) for s in shapes]
    return parameters, gradients, first, second


def widened(lists: tuple[list[Tensor], ...]) -> tuple[list[Tensor], ...]:
    return tuple([x.double() for x in xs] for xs in lists)


def rates_and_decays(count: int) -> dict[str, list[float]]:
    return {"rates": [1e-2 * (1 + i % 2) for i in range(count)], "decays": [0.1 * (i % 3) for i in range(count)]}


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("max_norm", [3.0, 1e9], ids=["clipped", "unclipped"])
@pytest.mark.parametrize("corrected", [False, True], ids=["uncorrected", "corrected"])
def test_accuracy(case, max_norm, corrected):
    """Against float64 within the float32 reference's own error, twice, and one rounding of the parameters."""
    corrections = [(0.3 / i, 0.2 / i) for i in range(1, len(SHAPES) + 1)] if corrected else None
    options = rates_and_decays(len(SHAPES)) | HYPER | {"corrections": corrections, "max_norm": max_norm, "scale": 0.5}
    actual = tensors(case.dtype, case.device)
    exact, yardstick = widened(actual), tuple([x.float() for x in xs] for xs in actual)
    norm = fastlm.adamw(*actual, **options, backend=case.backend)
    exact_norm = fastlm.adamw(*exact, **options, backend="reference")
    fastlm.adamw(*yardstick, **options, backend="reference")
    assert norm.shape == ()
    assert abs(norm.item() / exact_norm.item() - 1) <= NORM_ERROR
    for name, got, right, near in zip("pgmv", actual, exact, yardstick, strict=True):
        for a, b, c in zip(got, right, near, strict=True):
            if a.numel():
                rounding = torch.finfo(a.dtype).eps * b.abs().max()
                bound = 2 * (c.double() - b).abs().max() + rounding
                assert (a.double() - b).abs().max() <= bound, name


@pytest.mark.parametrize("case", cases(OP))
def test_repeats(case):
    first, second = tensors(case.dtype, case.device), tensors(case.dtype, case.device)
    options = rates_and_decays(len(SHAPES)) | HYPER | {"max_norm": 1.0, "backend": case.backend}
    assert torch.equal(fastlm.adamw(*first, **options), fastlm.adamw(*second, **options))
    assert all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("case", cases(OP))
def test_dtypes_may_differ_and_tensors_lie_anywhere(case):
    """A half-precision matrix beside a float32 bias that begins in the middle of 16 bytes."""
    buffer = torch.randn(40, device=case.device)
    parameters = [torch.randn(5, 8, device=case.device).to(case.dtype), buffer[3:20]]
    gradients = [torch.randn_like(p) for p in parameters]
    moments = [[torch.zeros_like(p, dtype=torch.float32) for p in parameters] for _ in range(2)]
    exact = widened((parameters, gradients, *moments))
    options = rates_and_decays(2) | HYPER
    outside = buffer[[0, 1, 2, 20, 21]].clone()
    fastlm.adamw(parameters, gradients, *moments, **options, backend=case.backend)
    fastlm.adamw(*exact, **options, backend="reference")
    assert torch.equal(buffer[[0, 1, 2, 20, 21]], outside)
    for a, b in zip(parameters, exact[0], strict=True):
        assert (a.double() - b).abs().max() <= 2 * torch.finfo(a.dtype).eps * b.abs().max()


@pytest.mark.parametrize("case", cases(OP))
def test_more_tensors_than_a_launch_takes(case):
    shapes = [(2,)] * 487
    actual = tensors(case.dtype, case.device, shapes)
    exact = widened(actual)
    options = rates_and_decays(len(shapes)) | HYPER | {"max_norm": 1.0}
    norm = fastlm.adamw(*actual, **options, backend=case.backend)
    assert abs(norm.item() / fastlm.adamw(*exact, **options).item() - 1) <= NORM_ERROR
    for a, b in zip(actual[0], exact[0], strict=True):
        assert (a.double() - b).abs().max() <= 2 * torch.finfo(a.dtype).eps * b.abs().max()


def test_is_torchs_adamw():
    parameters, gradients, *_ = widened(tensors(torch.float32, "cpu"))
    moments = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
    leaves = [torch.nn.Parameter(p.clone()) for p in parameters]
    optimizer = torch.optim.AdamW(leaves, lr=1e-2, weight_decay=0.1, **HYPER)
    for step in range(1, 4):
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(leaves, 2.0)
        optimizer.step()
        corrections = [tuple(1 - beta**step for beta in HYPER["betas"])] * len(leaves)
        equal = {"rates": [1e-2] * len(leaves), "decays": [0.1] * len(leaves)}
        fastlm.adamw(parameters, gradients, *moments, **equal, **HYPER, corrections=corrections, max_norm=2.0)
    for p, leaf in zip(parameters, leaves, strict=True):
        torch.testing.assert_close(p, leaf.detach(), rtol=1e-6, atol=1e-8)  # torch adds 1e-6 to the norm it divides by


P = [torch.zeros(3), torch.zeros(2, 2)]


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"parameters": []}, ValueError, "at least one parameter"),
        ({"gradients": P[:1]}, ValueError, "gradients must have an entry a parameter, 2, got 1"),
        ({"gradients": [P[0].half(), P[1]]}, TypeError, r"gradients\[0\] must be float32, got float16"),
        (
            {"first_moments": [P[0], P[1][0]]},
            ValueError,
            r"first_moments\[1\] must have its parameter's shape \(2, 2\)",
        ),
        ({"second_moments": [P[0], P[1].t()[:, :1].expand(2, 2)]}, ValueError, r"second_moments\[1\] must be contig"),
        ({"max_norm": 0.0}, ValueError, "max_norm must be above 0, got 0.0"),
        ({"betas": (1.0, 0.9)}, ValueError, r"betas in \[0, 1\)"),
        ({"corrections": [(0.1, 0.1)]}, ValueError, "corrections must have an entry a parameter, 2, got 1"),
        ({"corrections": [(0.1, 0.1), (1.0, 0.0)]}, ValueError, r"corrections must lie in \(0, 1\]"),
        ({"backend": "triton"}, RuntimeError, "no triton kernel for adamw"),
    ],
)
def test_bad_arguments(arguments, error, sentence):
    lists = {name: P for name in ("parameters", "gradients", "first_moments", "second_moments")}
    good = lists | rates_and_decays(2) | HYPER
    with pytest.raises(error, match=sentence):
        fastlm.adamw(**(good | arguments))
