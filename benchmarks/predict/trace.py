"""What the warps of a CTA issue, and what their accesses move."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np


@dataclass
class Trace:
    """Holds what a warp issues: positions in the code, and for each an index in the table of instances."""

    positions: np.ndarray
    instances: np.ndarray

    def key(self, matters: np.ndarray) -> bytes:
        """Returns what tells traces apart: positions, and instances of those instructions that matter."""
        return self.positions.tobytes() + (self.instances * matters[self.positions]).tobytes()


class Instances:
    """Collects what is particular to single executions of an instruction, each row once. Row 0 means: nothing."""

    FIELDS = ("off", "hit", "name", "count", "size", "shared", "value", "address")

    def __init__(self):
        self.rows: dict[tuple, int] = {(0,) * 8: 0}

    def index(self, **what) -> int:
        return self.rows.setdefault(tuple(what.get(name, 0) for name in self.FIELDS), len(self.rows))


@dataclass
class BlockTrace:
    """Holds the traces of a CTA's warps, and the sectors of 32 bytes that it reads and writes."""

    warps: list[Trace]
    read: np.ndarray
    written: np.ndarray
    bulk: dict[tuple, float]  # bytes by descriptor and coordinates
    guesses: Counter  # addresses of branches whose predicate is not known


def bank_clocks(addresses: np.ndarray, kind: str, mask: np.ndarray | None) -> int:
    """Returns the clocks of an access to shared memory. Each of 32 banks serves one word of 4 bytes per clock."""
    if kind.startswith("M"):  # ldmatrix: of each matrix, eight lanes have the rows
        matrices = {"4": 4, "2": 2}.get(kind[1:], 1)
        phases, width_ = [slice(8 * m, 8 * m + 8) for m in range(matrices)], 16
    else:
        width_ = int(kind)
        lanes = 32 * 4 // max(4, width_)
        phases = [slice(n, n + lanes) for n in range(0, 32, lanes)]
    clocks = 0
    for phase in phases:
        own = addresses[phase]
        if mask is not None and not kind.startswith("M"):
            own = own[mask[phase]]
        if not len(own):
            continue
        words = np.unique(((own >> 2)[:, None] + np.arange(max(1, width_ // 4))).reshape(-1))
        clocks += int(np.bincount(words % 32).max())
    return max(1, clocks)


class KnownLines:
    """Remembers the addresses that each instruction has read in other CTAs, which the L1 may hold."""

    def __init__(self):
        self.before: set[tuple[int, int, int]] = set()
        self.now: set[tuple[int, int, int]] = set()

    def seen(self, position: int, base: int, count: int) -> int:
        key = (position, base, count)
        self.now.add(key)
        return int(key in self.before)

    def next_block(self) -> None:
        self.before |= self.now
        self.now = set()
