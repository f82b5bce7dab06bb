"""layer_norm_gelu: GELU(LN(x)), in every backend and dtype that its SPEC names."""

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

OP = "layer_norm_gelu"


def tensors(case: Case, rows: int, columns: int) -> dict[str, torch.Tensor]:
    return inputs(case.device, case.dtype, x=(rows, columns), gamma=(columns,), beta=(columns,))


def naive(x, gamma, beta=None, approximate="tanh", eps=1e-5):
    return F.gelu(F.layer_norm(x, x.shape[-1:], gamma, beta, eps), approximate=approximate)


def check(
    case: Case, rows: int, columns: int, approximate: str, wide: tuple[str, ...] = (), without: tuple[str, ...] = ()
) -> None:
    assert_accurate(
        lambda **t: fastlm.layer_norm_gelu(**t, approximate=approximate, backend=case.backend),
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
    check(case, 19, 768, "tanh", wide=("gamma", "beta"))


@pytest.mark.parametrize("case", cases(OP))
def test_accuracy_without_beta(case):
    check(case, 19, 100, "none", without=("beta",))


@pytest.mark.parametrize("case", long_cases(OP))
@given(rows=st.integers(1, 40), columns=st.integers(3, 600))
@settings(max_examples=6)
def test_any_shape(case, rows, columns):
    check(case, rows, columns, "tanh")


@pytest.mark.parametrize("case", cases(OP))
def test_constant_rows(case):
    t = tensors(case, 1, 768) | {"x": constant_rows(case, 768)}
    assert_normalises_constant_rows(partial(fastlm.layer_norm_gelu, backend=case.backend), naive, t, case)


@pytest.mark.parametrize("case", cases(OP))
def test_repeats_and_compiles(case):
    assert_repeats(lambda **t: fastlm.layer_norm_gelu(**t, backend=case.backend), tensors(case, 70, 96), case.dtype)


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("shape", [(0, 16), (2, 0, 16), (1, 1), (1, 16)], ids=str)
def test_empty_and_single(case, shape):
    assert_takes_any_size(fastlm.layer_norm_gelu, case, shape)


@pytest.mark.parametrize("case", cases(OP))
def test_strided(case):
    assert_takes_strides(fastlm.layer_norm_gelu, case)


@pytest.mark.parametrize("case", cases(OP))
def test_opcheck(case):
    t = {name: x.requires_grad_() for name, x in tensors(case, 4, 24).items()}
    assert_passes_opcheck(OP, t["x"], t["gamma"], t["beta"], "tanh", 1e-5, case.backend)
    assert_passes_opcheck(OP, t["x"], t["gamma"], None, "none", 1e-5, case.backend)


def test_second_derivative_raises():
    assert_differentiable_once(fastlm.layer_norm_gelu, tensors(Case("reference", torch.float32, "cpu"), 3, 8))


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"x": torch.zeros(3, 8).long()}, TypeError, "x must be float32.* got int64"),
        ({"approximate": "erf"}, ValueError, "approximate must be 'tanh' or 'none' .* got 'erf'"),
        ({"beta": torch.ones(9)}, ValueError, r"must have shape \(8,\), got \(9,\)"),
    ],
)
def test_bad_arguments(arguments, error, sentence):
    good = {"x": torch.zeros(3, 8), "gamma": torch.ones(8)}
    with pytest.raises(error, match=sentence):
        fastlm.layer_norm_gelu(**(good | arguments))
