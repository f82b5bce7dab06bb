"""gelu_layer_norm: LN(GELU(x + bias)), in every backend and dtype that its SPEC names."""

from __future__ import annotations

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
    assert_takes_any_size,
    assert_takes_strides,
    cases,
    constant_rows,
    inputs,
    long_cases,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlm

OP = "gelu_layer_norm"


def tensors(case: Case, rows: int, columns: int) -> dict[str, torch.Tensor]:
    return inputs(case.device, case.dtype, x=(rows, columns), gamma=(columns,), beta=(columns,), bias=(columns,))


def naive(x, gamma, beta=None, bias=None, approximate="tanh", eps=1e-5):
    activated = F.gelu(x if bias is None else x + bias, approximate=approximate)
    return F.layer_norm(activated, x.shape[-1:], gamma, beta, eps)


def check(
    case: Case, rows: int, columns: int, approximate: str, wide: tuple[str, ...] = (), without: tuple[str, ...] = ()
) -> None:
    assert_accurate(
        lambda **t: fastlm.gelu_layer_norm(**t, approximate=approximate, backend=case.backend),
        lambda **t: naive(**t, approximate=approximate),
        {name: x for name, x in tensors(case, rows, columns).items() if name not in without},
        case.dtype,
        wide=wide,
    )


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize(("rows", "columns"), [(37, 768), (5, 1000), (64, 16), (10, 7), (2, 4096)], ids=str)
def test_accuracy(case, approximate, rows, columns):
    check(case, rows, columns, approximate)


@pytest.mark.parametrize("case", cases(OP))
def test_accuracy_with_float32_parameters(case):
    check(case, 19, 768, "tanh", wide=("gamma", "beta", "bias"))


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("without", [("beta",), ("bias",), ("beta", "bias")], ids=str)
def test_accuracy_without_optional_arguments(case, without):
    check(case, 19, 100, "none", without=without)


@pytest.mark.parametrize("case", long_cases(OP))
@given(rows=st.integers(1, 40), columns=st.integers(3, 600))
@settings(max_examples=6)
def test_any_shape(case, rows, columns):
    check(case, rows, columns, "tanh")


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_constant_rows(case, approximate):
    """GELU of a constant row is constant. There is no bias, which would change that."""
    t = {name: x for name, x in tensors(case, 1, 768).items() if name != "bias"} | {"x": constant_rows(case, 768)}
    op = partial(fastlm.gelu_layer_norm, approximate=approximate, backend=case.backend)
    assert_normalises_constant_rows(op, partial(naive, approximate=approximate), t, case)


@pytest.mark.parametrize("case", cases(OP))
def test_repeats_and_compiles(case):
    assert_repeats(lambda **t: fastlm.gelu_layer_norm(**t, backend=case.backend), tensors(case, 70, 96), case.dtype)


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("shape", [(0, 16), (2, 0, 16), (1, 1), (1, 16)], ids=str)
def test_empty_and_single(case, shape):
    assert_takes_any_size(fastlm.gelu_layer_norm, case, shape)


@pytest.mark.parametrize("case", cases(OP))
def test_strided(case):
    assert_takes_strides(fastlm.gelu_layer_norm, case)


@pytest.mark.parametrize("case", cases(OP))
def test_opcheck(case):
    t = {name: x.requires_grad_() for name, x in tensors(case, 4, 24).items()}
    assert_passes_opcheck(OP, t["x"], t["bias"], t["gamma"], t["beta"], "tanh", 1e-5, case.backend)
    assert_passes_opcheck(OP, t["x"], None, t["gamma"], None, "none", 1e-5, case.backend)


def test_second_derivative_raises():
    assert_differentiable_once(fastlm.gelu_layer_norm, tensors(Case("reference", torch.float32, "cpu"), 3, 8))


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"x": torch.zeros(3, 8).long()}, TypeError, "x must be float32.* got int64"),
        ({"approximate": "erf"}, ValueError, "approximate must be 'tanh' or 'none' .* got 'erf'"),
        ({"bias": torch.ones(9)}, ValueError, r"must have shape \(8,\), got \(9,\)"),
    ],
)
def test_bad_arguments(arguments, error, sentence):
    good = {"x": torch.zeros(3, 8), "gamma": torch.ones(8)}
    with pytest.raises(error, match=sentence):
        fastlm.gelu_layer_norm(**(good | arguments))
