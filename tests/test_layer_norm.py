"""layer_norm: LN(x), in every backend and dtype that its SPEC names."""

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
from fastlm import backends
from fastlm.backends import Call
from fastlm.ops import SPECS

OP = "layer_norm"


def tensors(case: Case, rows: int, columns: int) -> dict[str, torch.Tensor]:
    return inputs(case.device, case.dtype, x=(rows, columns), gamma=(columns,), beta=(columns,))


def naive(x, gamma, beta=None, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], gamma, beta, eps)


def check(case: Case, rows: int, columns: int, wide: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> None:
    def op(**t):
        return fastlm.layer_norm(**t, backend=case.backend)

    present = {name: x for name, x in tensors(case, rows, columns).items() if name not in without}
    assert_accurate(op, naive, present, case.dtype, wide=wide)


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize(("rows", "columns"), [(37, 768), (5, 1000), (64, 16), (9, 7), (2, 8192)], ids=str)
def test_accuracy(case, rows, columns):
    check(case, rows, columns)
    check(case, rows, columns, wide=("gamma", "beta"))


@pytest.mark.parametrize("case", cases(OP))
def test_accuracy_without_beta(case):
    check(case, 19, 100, without=("beta",))


@pytest.mark.parametrize("case", long_cases(OP))
@given(rows=st.integers(1, 40), columns=st.integers(3, 600))
@settings(max_examples=6)
def test_any_shape(case, rows, columns):
    check(case, rows, columns)


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("columns", [768, 1000, 7])
def test_constant_rows(case, columns):
    t = tensors(case, 1, columns) | {"x": constant_rows(case, columns)}
    assert_normalises_constant_rows(partial(fastlm.layer_norm, backend=case.backend), naive, t, case)


@pytest.mark.parametrize("case", cases(OP))
def test_repeats_and_compiles(case):
    assert_repeats(lambda **t: fastlm.layer_norm(**t, backend=case.backend), tensors(case, 70, 96), case.dtype)


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("shape", [(0, 16), (2, 0, 16), (1, 1), (1, 16)], ids=str)
def test_empty_and_single(case, shape):
    assert_takes_any_size(fastlm.layer_norm, case, shape)


@pytest.mark.parametrize("case", cases(OP))
def test_strided(case):
    assert_takes_strides(fastlm.layer_norm, case)


@pytest.mark.parametrize("case", cases(OP))
def test_opcheck(case):
    t = {name: x.requires_grad_() for name, x in tensors(case, 4, 24).items()}
    assert_passes_opcheck(OP, t["x"], t["gamma"], t["beta"], 1e-5, case.backend)
    assert_passes_opcheck(OP, t["x"], t["gamma"], None, 1e-5, case.backend)


def test_longer_rows_are_left_to_the_reference():
    assert backends.choose(SPECS[OP], "auto", Call("cuda", torch.float16, 8192)) == "triton"
    assert backends.choose(SPECS[OP], "auto", Call("cuda", torch.float16, 8193)) == "reference"
    with pytest.raises(RuntimeError, match="a last dimension of at most 8192, not 8193"):
        backends.choose(SPECS[OP], "triton", Call("cuda", torch.float16, 8193))


def test_second_derivative_raises():
    assert_differentiable_once(fastlm.layer_norm, tensors(Case("reference", torch.float32, "cpu"), 3, 8))


def test_autocast():
    x, gamma = torch.randn(4, 8), torch.ones(8)
    with torch.autocast("cpu", torch.bfloat16):
        y = fastlm.layer_norm(x, gamma)
    assert torch.equal(y, fastlm.layer_norm(x.bfloat16(), gamma))
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
        ({"x": torch.zeros(3, 8).long()}, TypeError, "x must be float32.* got int64"),
        ({"x": torch.tensor(1.0)}, ValueError, "x must have a last dimension of at least 1"),
        ({"gamma": torch.ones(8, 1)}, ValueError, r"gamma must have shape \(8,\), got \(8, 1\)"),
        ({"eps": float("nan")}, ValueError, "eps must be at least 0, got nan"),
    ],
)
def test_bad_arguments(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        fastlm.layer_norm(**({"x": torch.zeros(3, 8), "gamma": torch.ones(8)} | arguments))
