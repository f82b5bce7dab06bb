"""A group of warps: the registers of all their lanes, and which lanes are active."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.predict.accesses import Accesses

if TYPE_CHECKING:
    from benchmarks.predict.walk import Walk


class Group(Accesses):
    """Holds warps of a CTA that have gone the same way so far, and what their registers hold."""

    def __init__(self, walk: Walk, warps: np.ndarray, values: list, position: int):
        self.walk, self.warps, self.values, self.position = walk, warps, values, position
        self.mask = None  # lanes at work where not all are
        self.exited = None
        self.waiting: list[tuple[np.ndarray, int]] = []  # (lanes, position) of those that wait while others go on
        self.barriers: dict[str, tuple] = {}  # of BSSY: lanes, where they meet
        self.arrived: dict[str, np.ndarray] = {}
        self.positions: list[int] = []
        self.special_rows: list[tuple[int, object]] = []  # (index in positions, row, or one a warp)
        self.local: dict[int, object] = {}
        self.visits: Counter = Counter()

    @property
    def lanes(self) -> int:
        return 32 * len(self.warps)

    def fork(self, chosen: np.ndarray) -> Group:
        """Returns a group of the warps that a mask by warp chooses."""
        lanes = np.repeat(chosen, 32)

        def part(x):
            if not isinstance(x, np.ndarray):
                return x
            x = x[lanes]
            return (bool(x[0]) if x.dtype == bool else int(x[0])) if len(x) and (x == x[0]).all() else x

        other = Group(self.walk, self.warps[chosen], [part(x) for x in self.values], self.position)
        other.mask = None if self.mask is None or self.mask[lanes].all() else self.mask[lanes]
        other.exited = None if self.exited is None else self.exited[lanes]
        other.waiting = [(m[lanes], at) for m, at in self.waiting if m[lanes].any()]
        other.barriers = {k: (m if m is None else m[lanes], at) for k, (m, at) in self.barriers.items()}
        other.arrived = {k: m[lanes] for k, m in self.arrived.items()}
        other.positions = list(self.positions)
        index = np.flatnonzero(chosen)
        other.special_rows = [(n, [r[k] for k in index] if isinstance(r, list) else r) for n, r in self.special_rows]
        other.local = {k: part(x) for k, x in self.local.items()}
        other.visits = Counter(self.visits)
        return other

    def constant(self, at: int, size: int = 4):
        return self.walk.constants.read(at, size)

    def special(self, name: str):
        launch, block = self.walk.launch, self.walk.block
        thread = (self.warps[:, None] * 32 + np.arange(32)).reshape(-1).astype(np.int64)
        x, y, _ = launch.block
        name = name.removeprefix("SR_").removesuffix(".reuse")
        if name == "TID.X":
            return thread % x if y * launch.block[2] > 1 else thread
        if name == "TID.Y":
            return thread // x % y if y > 1 else 0
        if name == "TID.Z":
            return thread // (x * y) if launch.block[2] > 1 else 0
        if name == "TID":
            return thread
        if name == "LANEID":
            return thread % 32
        if name in ("CTAID.X", "CTAID.Y", "CTAID.Z"):
            return block["XYZ".index(name[-1])]
        if name in ("SRZ", "CgaCtaId", "CLUSTERID.X", "CLUSTERID.Y", "CLUSTERID.Z"):
            return 0
        return None

    def first_lane(self, x):
        if not isinstance(x, np.ndarray):
            return x
        rows = x.reshape(-1, 32)
        if self.mask is None:
            first = rows[:, 0]
        else:
            at = self.mask.reshape(-1, 32).argmax(1)
            first = rows[np.arange(len(rows)), at]
        return int(first[0]) if (first == first[0]).all() else np.repeat(first, 32)

    def active(self) -> np.ndarray:
        return np.ones(self.lanes, bool) if self.mask is None else self.mask

    def by_warp(self, x: np.ndarray):
        """Returns one bool if all warps agree, otherwise one per lane."""
        return bool(x[0]) if (x == x[0]).all() else np.repeat(x, 32)

    def vote(self, mode: str, x):
        if x is None or isinstance(x, (bool, np.bool_)):
            return x
        rows, active = x.reshape(-1, 32), self.active().reshape(-1, 32)
        if mode == "ANY":
            return self.by_warp((rows & active).any(1))
        if mode == "ALL":
            return self.by_warp((rows | ~active).all(1))
        return None

    def ballot(self, x):
        if x is None:
            return None
        rows = (np.broadcast_to(x, self.lanes) & self.active()).reshape(-1, 32)
        words = (rows.astype(np.int64) << np.arange(32)).sum(1)
        return int(words[0]) if (words == words[0]).all() else np.repeat(words, 32)

    def elected(self):
        rows = self.active().reshape(-1, 32)
        result = np.zeros_like(rows)
        result[np.arange(len(rows)), rows.argmax(1)] = rows.any(1)
        return result.reshape(-1)

    def store_local(self, at, words) -> None:
        if isinstance(at, int):
            for n, x in enumerate(words):
                self.local[at + 4 * n] = x

    def load_local(self, at, offset: int):
        return self.local.get(at + offset) if isinstance(at, int) else None

    def load_global(self, at, offset: int, size: int):
        if at is None or not self.walk.launch.memory:
            return None
        if isinstance(at, int):
            return self.walk.peek(at + offset, size)
        words = [self.walk.peek(int(x) + offset, size) for x in at]
        return None if any(w is None for w in words) else np.array(words, dtype=np.int64)
