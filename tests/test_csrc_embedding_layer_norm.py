"""The CUDA C++ kernels of csrc/embedding_layer_norm.cu: the bytes they move, and the gradients of large tables."""

from __future__ import annotations

import pytest
import torch

from fastlm import backends

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the emulator counts bytes; it runs on the CPU")

N, E, RUN = 37, 768, 4
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])


def launched(name: str, *arguments) -> dict[str, int]:
    """Launches a kernel and returns the bytes and accesses that the emulator counted."""
    from _C_emulated import take_traffic

    take_traffic()
    getattr(backends.launchers("cuda", "embedding_layer_norm"), name)(*arguments)
    return take_traffic()


@DTYPES
@pytest.mark.parametrize("save_sum", [False, True])
def test_bytes_of_the_forward(dtype, save_sum):
    word, y, s = (torch.randn(N, E, dtype=dtype) for _ in range(3))
    gamma, statistics, ids = torch.ones(E), torch.empty(N), torch.arange(N).flip(0)
    tables = (ids, word, word, None, word[:2], ids % 2, gamma, None, torch.tensor([7]), None)
    moved = launched(
        "embedding_layer_norm_forward", *tables, y, s if save_sum else None, statistics, statistics, N, 230, 1e-5
    )
    array = N * E * dtype.itemsize
    assert moved["read"] == array
    assert moved["written"] == (2 if save_sum else 1) * array + 8 * N
    assert moved["accesses"] == (3 if save_sum else 2) * array // 16 + 2 * N


@DTYPES
def test_bytes_of_the_backward(dtype):
    dy, s, ds = (torch.randn(N, E, dtype=dtype) for _ in range(3))
    gamma, dgamma, dbeta, seed, partials = torch.ones(E), torch.empty(E), torch.empty(E), torch.tensor([7]), 8
    room, array = torch.empty(2, partials, E), N * E * dtype.itemsize
    moved = launched(
        "embedding_layer_norm_backward",
        dy,
        s,
        torch.zeros(N),
        torch.ones(N),
        gamma,
        seed,
        None,
        ds,
        dgamma,
        dbeta,
        230,
        room,
    )
    assert moved["read"] == 2 * array + room.nbytes
    assert moved["written"] == array + room.nbytes + 8 * E
    moved = launched("embedding_layer_norm_backward", dy, *[None] * 4, seed, None, ds, None, None, 230, None)
    assert moved == {"read": array, "written": array, "cached": moved["cached"], "accesses": 2 * array // 16}


@DTYPES
@pytest.mark.parametrize("columns", [E, 99])
@pytest.mark.parametrize("vocabulary", [5, 1025])
def test_gradient_of_a_table(dtype, columns, vocabulary):
    """Each element of ds is read once. A row of a small table is summed by one CTA, a row of a large one by one warp.
    Some ids fill whole runs (RUN equal ids), some parts of runs, and some rows have no ids."""
    ids = torch.tensor([3] * 11 + [0] * 5 + [4, 1] + [vocabulary - 1] * 19)
    ds = torch.randn(N, columns).to(dtype)
    sorted_ids, order = torch.sort(ids.int(), stable=True)
    starts = torch.searchsorted(sorted_ids, torch.arange(vocabulary + 1, dtype=torch.int32))
    runs, out = torch.full((N // RUN, columns), torch.nan), torch.full((vocabulary, columns), torch.nan)
    moved = launched("embedding_gradient", ds, sorted_ids, order, starts, runs, out, RUN)

    exact = torch.zeros(vocabulary, columns, dtype=torch.float64).index_add_(0, ids, ds.double())
    assert (out - exact).abs().max() <= 19 * torch.finfo(torch.float32).eps * exact.abs().max()
    single = int((sorted_ids[: N // RUN * RUN : RUN] == sorted_ids[RUN - 1 :: RUN]).sum()) * columns * 4
    assert single == int(runs.isfinite().sum()) * 4 > 0
    assert moved["read"] == ds.nbytes + single
    assert moved["written"] == out.nbytes + single


def test_an_id_out_of_range_is_an_error_of_the_device():
    word, y = torch.zeros(5, 8), torch.zeros(1, 8)
    for id in (5, -1):
        with pytest.raises(RuntimeError, match="trap"):
            launched(
                "embedding_layer_norm_forward", torch.tensor([id]), word, *[None] * 8, y,
                None, None, None, 1, 256, 1e-5,
            )  # fmt: skip
