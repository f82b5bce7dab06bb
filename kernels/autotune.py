"""Opt-in tuning. By default a kernel has one configuration a shape class, and the reason stands beside it.

With FASTLM_AUTOTUNE=1 the first call of each shape class times the candidates, and the process keeps the fastest. The
host then waits for the device, and results repeat bit for bit only within a process: another one may find another tile
fastest, which adds sums in another order.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Hashable, Iterable

import torch
import triton
from triton.runtime.errors import OutOfResources, PTXASError

Tile = dict[str, int | bool]

log = logging.getLogger(__name__)
_fastest: dict[tuple[Hashable, ...], Tile] = {}


def launch(
    run: Callable[[Tile], object], default: Tile, choice: Callable[[], tuple[tuple[Hashable, ...], Iterable[Tile]]]
) -> None:
    """run(default); or, where FASTLM_AUTOTUNE=1 asks for it, run(tile) with the fastest of the default and others.

    `choice` gives the kernel's name and shape class, and the other tiles. `run` is called many times when they are
    timed: it must not read what it writes.
    """
    if os.environ.get("FASTLM_AUTOTUNE") != "1":
        run(default)
        return
    shape_class, others = choice()
    key = (torch.cuda.get_device_name() if torch.cuda.is_available() else "interpreter", *shape_class)
    if key not in _fastest:
        _fastest[key] = _find_fastest(run, shape_class, [default, *(t for t in others if t != default)])
    run(_fastest[key])


def _find_fastest(run: Callable[[Tile], object], shape_class: tuple[Hashable, ...], tiles: list[Tile]) -> Tile:
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{shape_class[0]}: FASTLM_AUTOTUNE=1 cannot time a new shape class while a CUDA graph is captured: "
            "call the op once before"
        )
    times = [milliseconds(lambda tile=tile: run(tile)) for tile in tiles]
    best = times.index(min(times))
    log.info("%s: %.4f ms with %s, %.4f ms by default", shape_class, times[best], tiles[best], times[0])
    return tiles[best]


def milliseconds(call: Callable[[], object]) -> float:
    """How long a launch takes, the median; infinite where the chip has not the shared memory or registers for it."""
    try:
        call()
    except (OutOfResources, PTXASError):
        return math.inf
    if torch.cuda.is_available():
        return triton.testing.do_bench(call, return_mode="median")
    start = time.perf_counter()  # of the interpreter
    call()
    return (time.perf_counter() - start) * 1e3
