"""What a group of warps moves and which barriers it comes to."""

from __future__ import annotations

import numpy as np

from benchmarks.predict.chip import SHARED_BYTES
from benchmarks.predict.trace import bank_clocks


class Accesses:
    """Adds to a group what its accesses call. The group has `walk`, `warps`, `mask`, `guard` and `positions`."""

    def note(self, row) -> None:
        """Records what is particular to the instruction being executed: one row, or one per warp."""
        if isinstance(row, list) and all(r == row[0] for r in row):
            row = row[0]
        self.special_rows.append((len(self.positions) - 1, row))

    def working(self) -> np.ndarray | None:
        """Returns the lanes whose guard holds, or None for all."""
        g = self.guard
        if isinstance(g, np.ndarray):
            return g if self.mask is None else g & self.mask
        return self.mask

    def touch_global(self, position: int, address, size: int, allow, shared_address) -> None:
        """Records which sectors an access touches, and how many bytes come from the L2."""
        walk = self.walk
        if address is None:
            return
        lanes = self.working()
        if allow is False:
            lanes = np.zeros(self.lanes, bool)
        elif isinstance(allow, np.ndarray):
            lanes = allow if lanes is None else lanes & allow
        op = walk.kernel.code[position].op
        store = op in ("STG", "ST", "RED", "REDG", "ATOM", "ATOMG")
        rows = np.broadcast_to(address, self.lanes).reshape(-1, 32)
        masks = None if lanes is None else lanes.reshape(-1, 32)
        noted = []
        for n in range(len(rows)):
            mask = None if masks is None else masks[n]
            if mask is not None and not mask.any():
                noted.append(
                    walk.table.index(size=0.0, shared=1.0 if op == "LDGSTS" else 0.0, off=0 if op == "LDGSTS" else 1)
                )
                continue
            lane_addresses = rows[n] if mask is None else rows[n][mask]
            base = int(lane_addresses[0]) & ~127
            key = ((lane_addresses - base).tobytes(), size)
            found = walk.sector_patterns.get(key)
            if found is None:
                inside = lane_addresses - base
                touched = np.unique(np.concatenate([inside >> 5, (inside + size - 1) >> 5]))
                found = walk.sector_patterns[key] = touched
            sectors = found + (base >> 5)
            walk.sectors[store].append(sectors)
            shared = max(1.0, len(lane_addresses) * size / SHARED_BYTES)
            moved, hit = float(len(sectors) * 32), 0
            if store:
                moved = float(min(moved, len(lane_addresses) * size))  # of a sector only what is written
            elif op != "LDGSTS":
                moved, hit = walk.from_l2(position, base, sectors)
            noted.append(walk.table.index(size=moved, shared=shared, hit=hit))
        if all(r == noted[0] for r in noted) and noted[0] == walk.full_row(size):
            return
        self.note(noted)

    def touch_shared(self, position: int, address, kind: str) -> None:
        """Records the clocks of an access to shared memory where they are not the usual ones."""
        walk = self.walk
        if address is None or not walk.conflicts:
            return
        lanes = self.working()
        rows = np.broadcast_to(address, self.lanes).reshape(-1, 32)
        masks = None if lanes is None else lanes.reshape(-1, 32)
        noted = []
        usual = walk.usual_shared(kind)
        for n in range(len(rows)):
            mask = None if masks is None else masks[n]
            row = rows[n]
            base = int(row[0]) & ~127
            key = ((row - base).tobytes(), kind, None if mask is None else mask.tobytes())
            clocks = walk.bank_patterns.get(key)
            if clocks is None:
                clocks = walk.bank_patterns[key] = bank_clocks(row, kind, mask)
            noted.append(0 if clocks == usual else walk.table.index(shared=float(clocks)))
            if clocks > usual:
                walk.conflicted[position] = max(walk.conflicted.get(position, 0), clocks / usual)
        if any(noted):
            self.note(noted)

    def barrier(self, what: str, position: int, address, value, tail: str) -> None:
        """Records what is done with an mbarrier, and with which one."""
        walk = self.walk
        lanes = self.working()
        rows = self.active().reshape(-1, 32) if lanes is None else lanes.reshape(-1, 32)
        addresses = None if address is None else np.broadcast_to(address, self.lanes).reshape(-1, 32)
        values = None if value is None else np.broadcast_to(value, self.lanes).reshape(-1, 32)
        noted = []
        for n, mask in enumerate(rows):
            if not mask.any():
                noted.append(walk.table.index(off=1))
                continue
            if addresses is None:
                raise ValueError(f"the address of the barrier at {walk.kernel.code[position].address:x} is not known")
            first = int(mask.argmax())
            where = int(addresses[n][first]) & 0xFFFFFF  # of a cluster, this block stands for all
            x = 0 if values is None else int(values[n][first])
            if what == "init":
                noted.append(walk.table.index(address=where, value=float(0x100000 - (x >> 1 & 0xFFFFF))))
            elif what == "wait":
                noted.append(walk.table.index(address=where, value=float(x >> 31), count=1))  # the phase is in the sign
            else:  # a lane arrives once, and expects so many bytes; A0: none arrives
                count = int(mask.sum()) * (0 if tail.startswith("A0") else 1)
                expects = 0 if tail.endswith("T0") or values is None else int(values[n][mask].sum())
                noted.append(walk.table.index(address=where, count=count, value=float(expects)))
        self.note(noted)

    def bulk(self, position: int, barrier, source, coordinates, size, load: bool) -> None:
        """Records a bulk copy. There is one per warp, whichever of its lanes is active."""
        walk = self.walk
        lanes = self.working()
        rows = self.active().reshape(-1, 32) if lanes is None else lanes.reshape(-1, 32)
        noted = []
        for n, mask in enumerate(rows):
            if not mask.any():
                noted.append(walk.table.index(off=1))
                continue
            at = 32 * n + int(mask.argmax())
            own = lambda x, at=at: int(x[at]) if isinstance(x, np.ndarray) else x  # noqa: E731
            if load and own(barrier) is None:
                raise ValueError(f"the barrier of the copy at {walk.kernel.code[position].address:x} is not known")
            amount = own(size) if own(size) is not None else walk.tensor_map_bytes(own(source))
            if amount is not None and own(source) is not None:
                walk.bulk_moved[tuple(-1 if own(x) is None else own(x) for x in (source, *coordinates))] = float(amount)
            # count 1: how much is not known, until what its barrier expects tells (spread_bulk_bytes)
            where = own(barrier) or 0
            noted.append(walk.table.index(address=where & 0xFFFFFF, size=float(amount or 0), count=int(amount is None)))
        self.note(noted)

    def named_barrier(self, position: int, name, count) -> None:
        """Records a named barrier and how many warps meet there."""
        name = self.first_lane(name)
        count = self.first_lane(count)
        if isinstance(name, np.ndarray):
            rows = [self.walk.table.index(name=int(x), count=int(count or 0) // 32) for x in name[::32]]
        elif name is None:
            raise ValueError(f"the number of the barrier at {self.walk.kernel.code[position].address:x} is not known")
        else:
            rows = self.walk.table.index(name=name, count=(count or 0) // 32)
        self.note(rows)
