"""FASTLM_AUTOTUNE=1: each shape class is timed once, the fastest tile is kept, and every tile gives right results."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from checks import Case, assert_accurate, inputs
from test_attention import check
from triton.runtime.errors import OutOfResources, PTXASError

import fastlm
from fastlm.kernels import autotune

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the tests replace the clock that chooses tiles")
INTERPRETED = Case("triton", torch.float16, "cpu")


@pytest.fixture
def tuning(monkeypatch):
    """Turns tuning on, with a fake clock that makes tile number `fastest` (modulo the number of tiles) the fastest."""
    state = SimpleNamespace(fastest=0, timed=[])

    def find_fastest(run, shape_class, tiles):
        times = iter([0.0 if i == state.fastest % len(tiles) else 1.0 for i in range(len(tiles))])
        monkeypatch.setattr(autotune, "milliseconds", lambda call: next(times))
        state.timed.append(shape_class)
        return original(run, shape_class, tiles)

    original = autotune._find_fastest
    monkeypatch.setenv("FASTLM_AUTOTUNE", "1")
    monkeypatch.setattr(autotune, "_find_fastest", find_fastest)
    monkeypatch.setattr(autotune, "_fastest", {})
    return state


def layer_norm(rows: int, columns: int = 200) -> None:
    t = inputs("cpu", torch.float16, x=(rows, columns), gamma=(columns,), beta=(columns,))
    assert_accurate(
        lambda **t: fastlm.layer_norm(**t, backend="triton"),
        lambda x, gamma, beta: torch.nn.functional.layer_norm(x, x.shape[-1:], gamma, beta, 1e-5),
        t,
        torch.float16,
    )


@pytest.mark.parametrize("fastest", range(4))
def test_any_tile_of_rows_is_right(tuning, fastest):
    tuning.fastest = fastest
    layer_norm(7)
    assert len(tuning.timed) == 2  # forward and backward


EVERY_TILE = [pytest.param(n, sequence, marks=pytest.mark.slow) for sequence in (70, 150) for n in range(13)]


@pytest.mark.parametrize(("fastest", "sequence"), [(3, 70), *EVERY_TILE])  # 70: gradients in one kernel; 150: in two
def test_any_tile_of_attention_is_right(tuning, fastest, sequence):
    tuning.fastest = fastest
    check(INTERPRETED, (1, sequence, 1, 64), causal=True, p=0.1)
    assert len(tuning.timed) == (2 if sequence == 70 else 3)


def test_a_shape_class_is_timed_once(tuning):
    for rows in (5, 6, 7, 8):
        layer_norm(rows)
    assert len(tuning.timed) == 2
    layer_norm(9)
    layer_norm(8, columns=100)
    assert len(tuning.timed) == 6


def test_the_fastest_is_kept(monkeypatch):
    monkeypatch.setenv("FASTLM_AUTOTUNE", "1")
    monkeypatch.setattr(autotune, "_fastest", {})
    times, runs = iter([3.0, 1.0, 2.0]), []
    monkeypatch.setattr(autotune, "milliseconds", lambda call: next(times))
    tiles = [{"warps": n} for n in (4, 1, 2)]
    for _ in range(2):
        autotune.launch(runs.append, tiles[0], lambda: (("kernel", 64), tiles))
    assert runs == [tiles[1], tiles[1]]


def test_nothing_is_timed_unless_asked(monkeypatch):
    monkeypatch.delenv("FASTLM_AUTOTUNE", raising=False)
    monkeypatch.setattr(autotune, "milliseconds", lambda call: pytest.fail("timed"))
    runs = []
    autotune.launch(runs.append, {"warps": 4}, lambda: pytest.fail("asked for others"))
    assert runs == [{"warps": 4}]


@pytest.mark.parametrize("error", [OutOfResources(300_000, 232_448, "shared memory"), PTXASError("no registers")])
def test_what_the_chip_cannot_run_is_never_the_fastest(error):
    def call():
        raise error

    assert autotune.milliseconds(call) == math.inf
    assert 0 <= autotune.milliseconds(lambda: None) < math.inf


def test_tuning_during_a_graph_capture_raises(monkeypatch):
    monkeypatch.setenv("FASTLM_AUTOTUNE", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="kernel: .* while a CUDA graph is captured: call the op once before"):
        autotune.launch(print, {"warps": 4}, lambda: (("kernel", "unseen"), []))
