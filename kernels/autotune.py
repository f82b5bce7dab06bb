"""Opt-in tuning of tiles. By default each shape class of a kernel has one tile; a comment beside it gives the reason.

With FASTLM_AUTOTUNE=1 the first call of each shape class times all candidate tiles, and the process keeps the fastest.
The host waits for the device during the timing. Results are then bitwise reproducible only within one process: another
process may find another tile fastest, which adds up its sums in another order.
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
    run: Callable[[Tile], object],
    default: Tile,
    search_space: Callable[[], tuple[tuple[Hashable, ...], Iterable[Tile]]],
) -> None:
    """Calls run(default), or with FASTLM_AUTOTUNE=1 run(tile) with the fastest of the default and the candidates.

    `search_space` returns the shape class, which begins with the kernel's name, and the candidate tiles. Timing calls
    `run` many times, so the kernel must not read its own outputs.
    """
    if os.environ.get("FASTLM_AUTOTUNE") != "1":
        run(default)
        return
    shape_class, candidates = search_space()
    key = (torch.cuda.get_device_name() if torch.cuda.is_available() else "interpreter", *shape_class)
    if key not in _fastest:
        _fastest[key] = _find_fastest(run, shape_class, [default, *(t for t in candidates if t != default)])
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
    """Returns the median time of a launch, or infinity if the chip has too little shared memory or registers for it."""
    try:
        call()
    except (OutOfResources, PTXASError):
        return math.inf
    if torch.cuda.is_available():
        return triton.testing.do_bench(call, return_mode="median")
    start = time.perf_counter()  # without a GPU, Triton's interpreter is timed
    call()
    return (time.perf_counter() - start) * 1e3
