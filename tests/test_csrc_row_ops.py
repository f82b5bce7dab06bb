"""layer_norm and the GELU ops in CUDA C++ move exactly the bytes that the comments at the top of their files state."""

from __future__ import annotations

import math

import pytest
import torch

import fastlm
from fastlm.ops._register import num_partials

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the emulator counts bytes; it runs on the CPU")

# For each op: its parameters, which are vectors, and whether it stores each row's mean and rstd.
OPS = {
    "layer_norm": (("gamma", "beta"), True),
    "gelu_layer_norm": (("gamma", "beta", "bias"), True),
    "layer_norm_gelu": (("gamma", "beta"), True),
    "bias_gelu": (("bias",), False),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("rows", "columns"), [(37, 768), (5, 256), (3, 1536), (2, 8192)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_bytes(op, rows, columns, dtype):
    from _C_emulated import take_traffic

    names, normalises = OPS[op]
    x = torch.randn(rows, columns, dtype=dtype, requires_grad=True)
    parameters = {name: torch.randn(columns, dtype=dtype, requires_grad=True) for name in names}
    array, statistics = rows * columns * dtype.itemsize, 8 * rows * normalises
    sums = len(names) * columns * 4
    partials = sums * num_partials(rows, x.device)
    if op == "bias_gelu":  # its grid also splits the columns
        partials = sums * max(1, num_partials(rows, x.device) // math.ceil(columns / 256))

    take_traffic()
    y = getattr(fastlm, op)(x, **parameters, backend="cuda")
    forward = take_traffic()
    y.backward(torch.randn_like(y))
    backward = take_traffic()
    assert forward["read"] == array
    assert forward["written"] == array + statistics
    assert forward["accesses"] == 2 * array // 16 + statistics // 4
    assert backward["read"] == 2 * array + partials
    assert backward["written"] == array + partials + sums
