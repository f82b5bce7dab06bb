"""The traces of a launch's CTAs. Of CTAs that go the same way, one is carried out."""

from __future__ import annotations

import numpy as np

from benchmarks.predict.chip import Chip
from benchmarks.predict.figures import (
    BAR,
    BARRIER_ARRIVE,
    BARRIER_INIT,
    BARRIER_WAIT,
    BULK_LOAD,
    BULK_STORE,
    COPY_ARRIVE,
    INSTANCE,
    MEMORY,
    operations,
)
from benchmarks.predict.instructions import Kernel
from benchmarks.predict.launch import Launch
from benchmarks.predict.trace import BlockTrace, Instances, KnownLines, Trace
from benchmarks.predict.walk import Walk


class Blocks:
    """Holds the traces of a launch's CTAs, each kind once."""

    def __init__(self, kernel: Kernel, launch: Launch, chip: Chip, decide=None, conflicts: bool = True):
        self.kernel, self.launch, self.chip, self.decide, self.conflicts = kernel, launch, chip, decide, conflicts
        self.table, self.lines = Instances(), KnownLines()
        # Warps that differ only in guards of arithmetic, such as corrections of divisions, count as the same.
        moves = (MEMORY, BAR, BARRIER_INIT, BARRIER_ARRIVE, BARRIER_WAIT, COPY_ARRIVE, BULK_LOAD, BULK_STORE)
        self.matters = np.isin(operations(kernel, chip)["kind"], moves)
        self.traces: dict[int, BlockTrace] = {}
        self.kinds: dict[tuple, list[Trace]] = {}
        self.same: dict[bytes, Trace] = {}
        self.walks: list[Walk] = []
        if launch.blocks > 1:  # what a CTA far away reads too is in the L1, such as a vector that all rows share
            self.trace_block(launch.blocks - 1)
            self.lines.next_block()
            self.traces.clear()
            self.kinds.clear()
            self.same.clear()

    def trace_block(self, number: int) -> BlockTrace:
        if number not in self.traces:
            walk = Walk(self.kernel, self.launch, number, self.table, self.lines, self.decide, self.conflicts)
            self.lines.now = set()
            trace = walk.run()
            spread_bulk_bytes(trace, self.kernel, self.table)
            trace.warps = [self.same.setdefault(w.key(self.matters), w) for w in trace.warps]
            self.kinds.setdefault(self.kind(trace), trace.warps)
            self.traces[number] = trace
        return self.traces[number]

    def length(self, number: int) -> int:
        """Returns how many instructions the warps of a CTA issue."""
        return sum(len(w.positions) for w in self.trace_block(number).warps)

    @staticmethod
    def kind(trace: BlockTrace) -> tuple:
        return tuple(id(w) for w in trace.warps)

    def kind_at(self, *place: int) -> tuple:
        x, y, _ = self.launch.grid
        return self.kind(self.trace_block(place[0] + x * (place[1] + y * place[2])))

    def axis(self, axis: int, most: int = 64) -> list[int]:
        """Returns, for each place along an axis of the grid, the place that stands for it.

        It is the middle if the place makes no difference. What only the first CTA does, such as to store a seed, counts
        as no difference.
        """
        grid = self.launch.grid
        extent, middle = grid[axis], [g // 2 for g in grid]
        at = lambda n: self.kind_at(*[n if k == axis else middle[k] for k in range(3)])  # noqa: E731
        far = sorted({extent // 2, extent // 3 + 1, 2 * extent // 3} & set(range(1, extent)))
        first = 0 if extent <= 2 else 1
        if all(at(n) == at(middle[axis]) for n in {first, *far, *([extent - 1] if extent <= most else [])}):
            start = (2, 3) if extent <= most else ()
            if all(at(n) == at(middle[axis]) for n in start if n < extent):
                return [middle[axis]] * extent
        if extent <= most:
            return list(range(extent))
        looked = 0
        while looked < most:
            looked = min(most, max(4, looked * 3 // 2))
            kinds = [at(n) for n in range(1, 1 + looked)]
            for p in range(1, looked // 2 + 1):
                if all(kinds[n] == kinds[n % p] for n in range(looked)) and all(
                    at(n) == kinds[(n - 1) % p] for n in far
                ):
                    return [1 + (n - 1) % p for n in range(extent)]
        return [round(n / (extent - 1) * (most - 1)) * (extent - 1) // (most - 1) for n in range(extent)]

    def order(self) -> list[int]:
        """Returns, for each CTA in the order in which they start, a CTA that goes the same way."""
        x, y, z = (self.axis(n) for n in range(3))
        gx, gy, _ = self.launch.grid
        return [a + gx * (b + gy * c) for c in z for b in y for a in x]


def spread_bulk_bytes(trace: BlockTrace, kernel: Kernel, table: Instances) -> None:
    """Gives bulk copies of unknown size equal parts of the bytes that their mbarrier was told to expect."""
    size_at, value_at, address_at, count_at = (Instances.FIELDS.index(x) for x in ("size", "value", "address", "count"))
    for warp in {id(w): w for w in trace.warps}.values():
        rows = list(table.rows)
        expecting: dict[int, tuple[float, list[int]]] = {}  # by barrier: bytes, and which copies bring them
        all_expected = []
        for n in np.flatnonzero(warp.instances).tolist():
            instruction, row = kernel.code[warp.positions[n]], rows[warp.instances[n]]
            if instruction.op == "SYNCS" and "ARRIVE" in instruction.full and row[value_at] > 0:
                expecting[row[address_at]] = (row[value_at], [])
                all_expected.append(expecting[row[address_at]])
            elif instruction.op in ("UTMALDG", "UBLKCP") and row[count_at] and row[address_at] in expecting:
                expecting[row[address_at]][1].append(n)
        for expected, copies in all_expected:
            for n in copies:
                row = list(rows[warp.instances[n]])
                row[size_at], row[count_at] = expected / len(copies), 0
                warp.instances[n] = table.rows.setdefault(tuple(row), len(table.rows))


def requested(kernel: Kernel, block: list[Trace], table: Instances, chip: Chip) -> float:
    """Returns the bytes that a CTA asks of the L2."""
    static = operations(kernel, chip)["size"]
    rows = np.array(list(table.rows), dtype=INSTANCE)
    counts = np.array([k in (MEMORY, BULK_LOAD, BULK_STORE) for k in operations(kernel, chip)["kind"]])
    total = 0.0
    for warp in block:
        plain = warp.instances == 0
        total += static[warp.positions[plain]].sum()
        own = rows[warp.instances[~plain]]
        total += own["size"][(own["off"] == 0) & (own["hit"] == 0) & counts[warp.positions[~plain]]].sum()
    return float(total)


def touched(found: Blocks, blocks: int) -> float:
    """Returns the bytes that a launch moves from and to HBM if each byte that neighbouring CTAs touch is moved once."""
    numbers = sorted(n for n in found.traces)
    run = [n for k, n in enumerate(numbers) if k == 0 or n == numbers[k - 1] + 1][: len(numbers)]
    run = run[: next((k for k in range(1, len(run)) if run[k] != run[k - 1] + 1), len(run))]
    read = np.unique(np.concatenate([found.traces[n].read for n in run]))
    written = np.unique(np.concatenate([found.traces[n].written for n in run]))
    bulk: dict[tuple, float] = {}
    for n in run:
        bulk |= found.traces[n].bulk
    return (32.0 * (len(read) + len(written)) + sum(bulk.values())) / len(run) * blocks
