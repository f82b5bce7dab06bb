"""csrc/layer_norm.cu moves exactly the bytes that the comment at its top states."""

from __future__ import annotations

import pytest
import torch

import fastlm
from fastlm.ops._register import num_partials

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the emulator counts bytes; it runs on the CPU")

SHAPES = [(37, 768), (9, 1024), (5, 256), (3, 1536), (2, 8192)]


def traffic() -> dict[str, int]:
    import _C_emulated

    return _C_emulated.take_traffic()


def run(
    rows: int, columns: int, dtype: torch.dtype, *, p: float, gradients: bool = True, keep_sum: bool = True
) -> tuple[dict, dict]:
    """Returns the traffic of the forward and that of the backward."""
    x = torch.randn(rows, columns, dtype=dtype, requires_grad=gradients)
    residual = torch.randn(rows, columns, dtype=dtype)
    gamma, beta, bias = (torch.ones(columns, dtype=dtype, requires_grad=gradients) for _ in range(3))
    seed = torch.tensor([7]) if p else None
    traffic()
    options = {"dropout_p": p, "seed": seed, "keep_sum": keep_sum, "backend": "cuda"}
    y = fastlm.add_layer_norm(x, residual, gamma, beta, bias=bias, **options)
    forward = traffic()
    if gradients:
        y.backward(torch.randn_like(y))
    return forward, traffic()


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_bytes_of_the_forward(rows, columns, dtype):
    array = rows * columns * dtype.itemsize
    for gradients in (False, True):
        moved, _ = run(rows, columns, dtype, p=0.1, gradients=gradients)
        assert moved["read"] == 2 * array
        assert moved["written"] == (2 if gradients else 1) * array + 8 * rows
        assert moved["accesses"] == (4 if gradients else 3) * array // 16 + 2 * rows


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("keep_sum", [True, False])
def test_bytes_of_the_backward(rows, columns, dtype, p, keep_sum):
    array = rows * columns * dtype.itemsize
    sums = 3 * num_partials(rows, torch.device("cpu")) * columns * 4
    forward, moved = run(rows, columns, dtype, p=p, keep_sum=keep_sum)
    assert forward["written"] == (1 + keep_sum) * array + 8 * rows
    assert moved["read"] == 2 * array + sums
    assert moved["written"] == (2 if p else 1) * array + sums + 3 * columns * 4


def test_a_row_too_long_is_named():
    x = torch.zeros(2, 8200)
    with pytest.raises(RuntimeError, match="at most 8192, not 8200"):
        fastlm.add_layer_norm(x, x, torch.ones(8200), backend="cuda")


def test_launchers_check_what_kernels_assume():
    from _C_emulated import add_layer_norm_forward

    x, vector, statistics = torch.zeros(3, 16), torch.zeros(16), torch.zeros(3)

    def launch(**changes):
        arguments = {
            "x": x, "residual": x, "bias": None, "gamma": vector, "beta": None, "seed": None, "first_row": None,
            "y": x.clone(),
            "sum": None, "mean": statistics, "rstd": statistics, "keep": 256, "eps": 1e-5, "stream": 0,
        }  # fmt: skip
        return add_layer_norm_forward(*(arguments | changes).values())

    launch()
    for changes, sentence in [
        ({"residual": x.half()}, "residual must be float32, got float16"),
        ({"y": x[:2]}, r"y must have shape \(3, 16\), got \(2, 16\)"),
        ({"y": x.t().contiguous().t()}, r"y must be contiguous, got strides \(1, 3\)"),
        ({"gamma": None}, "gamma must be a tensor, got None"),
        ({"mean": statistics.double()}, "no tensors of torch.float64"),
        ({"keep": 200}, "there must be a seed where keep is less than 256"),
        ({"x": torch.zeros(1, 1, 1, 1, 1, 1, 3)}, "at most 6 dimensions, got 7"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            launch(**changes)
    with pytest.raises(TypeError, match=r"torch.Tensor \| None"):
        launch(x=x.numpy())
