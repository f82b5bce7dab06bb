"""bias_gelu: GELU(x + bias), in every backend and dtype that its SPEC names."""

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
    assert_takes_any_size,
    assert_takes_strides,
    cases,
    inputs,
    long_cases,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlm

OP = "bias_gelu"


def tensors(case: Case, rows: int, columns: int) -> dict[str, torch.Tensor]:
    return inputs(case.device, case.dtype, x=(rows, columns), bias=(columns,))


def naive(x, bias=None, approximate="tanh"):
    return F.gelu(x if bias is None else x + bias, approximate=approximate)


def check(
    case: Case, rows: int, columns: int, approximate: str, wide: tuple[str, ...] = (), without: tuple[str, ...] = ()
) -> None:
    assert_accurate(
        lambda **t: fastlm.bias_gelu(**t, approximate=approximate, backend=case.backend),
        lambda **t: naive(**t, approximate=approximate),
        {name: x for name, x in tensors(case, rows, columns).items() if name not in without},
        case.dtype,
        wide=wide,
    )


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize(("rows", "columns"), [(37, 768), (5, 1000), (64, 16), (9, 7), (2, 4096)], ids=str)
def test_accuracy(case, approximate, rows, columns):
    check(case, rows, columns, approximate)


@pytest.mark.parametrize("case", cases(OP))
def test_accuracy_with_float32_parameters(case):
    check(case, 19, 768, "tanh", wide=("bias",))


@pytest.mark.parametrize("case", cases(OP))
def test_accuracy_without_bias(case):
    check(case, 19, 100, "none", without=("bias",))


@pytest.mark.parametrize("case", long_cases(OP))
@given(rows=st.integers(1, 40), columns=st.integers(3, 600))
@settings(max_examples=6)
def test_any_shape(case, rows, columns):
    check(case, rows, columns, "tanh")


@pytest.mark.parametrize("case", cases(OP))
def test_repeats_and_compiles(case):
    assert_repeats(lambda **t: fastlm.bias_gelu(**t, backend=case.backend), tensors(case, 70, 96), case.dtype)


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("shape", [(0, 16), (2, 0, 16), (1, 1), (1, 16)], ids=str)
def test_empty_and_single(case, shape):
    assert_takes_any_size(fastlm.bias_gelu, case, shape)


@pytest.mark.parametrize("case", cases(OP))
def test_strided(case):
    assert_takes_strides(fastlm.bias_gelu, case)


@pytest.mark.parametrize("case", cases(OP))
def test_opcheck(case):
    t = {name: x.requires_grad_() for name, x in tensors(case, 4, 24).items()}
    assert_passes_opcheck(OP, t["x"], t["bias"], "tanh", case.backend)
    assert_passes_opcheck(OP, t["x"], None, "none", case.backend)


def test_second_derivative_raises():
    assert_differentiable_once(fastlm.bias_gelu, tensors(Case("reference", torch.float32, "cpu"), 3, 8))


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"x": torch.zeros(3, 8).long()}, TypeError, "x must be float32.* got int64"),
        ({"approximate": "erf"}, ValueError, "approximate must be 'tanh' or 'none' .* got 'erf'"),
        ({"bias": torch.ones(9)}, ValueError, r"must have shape \(8,\), got \(9,\)"),
    ],
)
def test_bad_arguments(arguments, error, sentence):
    good = {"x": torch.zeros(3, 8), "bias": torch.ones(8)}
    with pytest.raises(error, match=sentence):
        fastlm.bias_gelu(**(good | arguments))
