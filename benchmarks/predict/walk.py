"""Carries out the integer part of a kernel for one CTA: which way its warps go, and what they load.

Warps that go different ways are followed separately, and so are lanes of a warp until they meet again.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from benchmarks.predict.branches import Branches
from benchmarks.predict.chip import SHARED_BYTES
from benchmarks.predict.encoding import PLACES
from benchmarks.predict.group import Group
from benchmarks.predict.instructions import Kernel
from benchmarks.predict.launch import PARAMETER_SPACE, Constants, Launch
from benchmarks.predict.trace import BlockTrace, Instances, KnownLines, Trace

L1_SECTORS = 2048  # 64 KiB, which shared memory leaves of 256


class Walk(Branches):
    """Carries out a kernel for one CTA."""

    def __init__(
        self, kernel: Kernel, launch: Launch, block: int, table: Instances, known_lines: KnownLines | None,
        decide=None, conflicts: bool = True, limit: int = 4_000_000,
    ):  # fmt: skip
        self.kernel, self.launch, self.table, self.limit = kernel, launch, table, limit
        gx, gy, _ = launch.grid
        self.block = (block % gx, block // gx % gy, block // (gx * gy))
        self.constants = Constants(kernel, launch)
        self.compiled = kernel.compiled()
        self.decide, self.conflicts, self.lines = decide, conflicts, known_lines
        self.sectors: tuple[list, list] = ([], [])
        self.bulk_moved: dict[tuple, float] = {}
        self.sector_patterns: dict = kernel.sector_patterns
        self.bank_patterns: dict = kernel.bank_patterns
        self.conflicted: dict[int, float] = kernel.conflicted
        self.guesses: Counter = Counter()
        self.recent: dict[int, int] = {}  # when sectors were read last, counted in sectors
        self.loaded = 0
        self.off_row = table.index(off=1)
        self._full: dict[int, int] = {}

    def full_row(self, size: int) -> int:
        """Returns the row of an access of whole warps to neighbouring bytes, which needs no mention."""
        if size not in self._full:
            self._full[size] = self.table.index(size=float(size * 32), shared=max(1.0, size * 32 / SHARED_BYTES))
        return self._full[size]

    def usual_shared(self, kind: str) -> int:
        if kind.startswith("M"):
            return {"4": 4, "2": 2}.get(kind[1:], 1)
        return max(1, int(kind) * 32 // SHARED_BYTES)

    def from_l2(self, position: int, base: int, sectors: np.ndarray) -> tuple[float, int]:
        """Returns the bytes of a load that come from the L2, and 1 if none does.

        The L1 is assumed to hold what the CTA has read lately, and what another CTA reads with the same instruction.
        """
        instruction = self.kernel.code[position]
        if any(x in instruction.full for x in (".STRONG", ".BYPASS", ".MMIO")):
            return float(len(sectors) * 32), 0
        if self.lines is not None and self.lines.seen(position, base, len(sectors)):
            return float(len(sectors) * 32), 1
        recent, now = self.recent, self.loaded
        self.loaded = now + len(sectors)
        new = 0
        for sector in sectors.tolist():
            new += now - recent.get(sector, -L1_SECTORS) >= L1_SECTORS
            recent[sector] = now
        return float(new * 32 or len(sectors) * 32), int(new == 0)

    def peek(self, at: int, size: int) -> int | None:
        for start, data in self.launch.memory.items():
            if start <= at and at + size <= start + len(data):
                return int.from_bytes(data[at - start : at - start + size], "little")
        return None

    def tensor_map_bytes(self, descriptor) -> int | None:
        """Returns the bytes of the box of a TMA descriptor among the parameters, as the recording runtime wrote it."""
        if not isinstance(descriptor, int):
            return None
        at = descriptor - PARAMETER_SPACE
        data = self.launch.parameters[at : at + 128]
        if len(data) == 128 and data[:8] == b"TENSORMP":
            return int.from_bytes(data[8:16], "little")
        return None

    def run(self) -> BlockTrace:
        warps = -(-self.launch.threads // 32)
        # Who reads a register that was never written does not care what is in it.
        groups = [Group(self, np.arange(warps), [0] * PLACES, 0)]
        partial = self.launch.threads % 32
        if partial:
            groups[0].mask = np.arange(32 * warps) < self.launch.threads
            groups[0].exited = ~groups[0].mask
        finished: list[Trace | None] = [None] * warps
        while groups:
            group = groups.pop()
            more = self.go(group)
            if more is not None:
                groups.extend(more)
                continue
            self.finish(group, finished)
        read, written = (np.unique(np.concatenate(x)) if x else np.zeros(0, np.int64) for x in self.sectors)
        return BlockTrace(finished, read, written, self.bulk_moved, self.guesses)

    def finish(self, group: Group, finished: list) -> None:
        positions = np.array(group.positions, dtype=np.int32)
        for n, warp in enumerate(group.warps):
            rows = np.zeros(len(positions), dtype=np.int32)
            for at, row in group.special_rows:
                rows[at] = row[n] if isinstance(row, list) else row
            finished[warp] = Trace(positions, rows)
