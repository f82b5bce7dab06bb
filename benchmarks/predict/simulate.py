"""Runs simulate.cpp, the simulation of one SM, on the traces of some CTAs."""

from __future__ import annotations

import ctypes
import functools
from collections import Counter
from dataclasses import dataclass

import numpy as np

from benchmarks.predict.build import HERE, build_once, cache, digest
from benchmarks.predict.chip import Chip
from benchmarks.predict.figures import INSTANCE, REASONS, RESOURCES, operations
from benchmarks.predict.instructions import Kernel
from benchmarks.predict.trace import Instances, Trace

CHIP_FIELDS = (
    "agu queue slack shared_bytes port l2_rate hbm_rate red far window launch branch miss lat_l1 lat_tma".split()  # noqa: SIM905
)


class CoreChip(ctypes.Structure):
    _fields_ = [(n, ctypes.c_double) for n in CHIP_FIELDS] + [("youngest", ctypes.c_int32), ("ports", ctypes.c_int32)]


class Totals(ctypes.Structure):
    _fields_ = [
        ("clocks", ctypes.c_double),
        ("issued", ctypes.c_double),
        ("busy", ctypes.c_double * len(RESOURCES)),
        ("idle", ctypes.c_double * len(REASONS)),
    ]


@functools.cache
def core() -> ctypes.CDLL:
    """Returns the compiled simulation."""
    source = HERE / "simulate.cpp"
    command = ["g++", "-O2", "-std=c++20", "-shared", "-fPIC", str(source), "-o", "{}"]
    return ctypes.CDLL(str(build_once(cache() / f"simulate-{digest([source], *command[:-3])}.so", command)))


@dataclass
class Result:
    """Holds what a simulation counted."""

    clocks: float
    issued: float
    busy: dict[str, float]  # clocks of each resource, summed over the SMSPs where it is one of theirs
    idle: Counter  # clocks without issue, summed over the SMSPs, by what the next warp to issue waited for
    issues: np.ndarray  # by position
    waits: np.ndarray  # clocks that warps waited, by position and reason
    idles: np.ndarray  # clocks without issue that ended with this instruction, by position and reason
    finished: np.ndarray  # when each CTA ended


def simulate(
    kernel: Kernel, blocks: list[list[Trace]], table: Instances, held: int, chip: Chip, miss: float = 0.0
) -> Result:
    """Simulates CTAs one after the other, `held` at a time, on one SM.

    `miss` is the part of the bytes read and written that comes from or goes to HBM.
    """
    numbers: dict[int, int] = {}
    traces: list[Trace] = []
    which = []
    for block in blocks:
        for trace in block:
            if id(trace) not in numbers:
                numbers[id(trace)] = len(traces)
                traces.append(trace)
            which.append(numbers[id(trace)])
    starts = np.cumsum([0] + [len(t.positions) for t in traces]).astype(np.int64)
    positions = np.concatenate([t.positions for t in traces]).astype(np.int32)
    instances = np.concatenate([t.instances for t in traces]).astype(np.int32)
    which_array = np.array(which, dtype=np.int32)
    rows = np.array(list(table.rows), dtype=INSTANCE)
    ops = operations(kernel, chip)
    per_clock = chip.ghz * 1e9 * chip.multiprocessors
    values = {n: getattr(chip, n, 0.0) for n in CHIP_FIELDS} | {
        "l2_rate": chip.l2 / per_clock,
        "hbm_rate": chip.hbm / per_clock,
        "far": chip.lat_l2 + (chip.lat_hbm - chip.lat_l2) * min(1.0, 4 * miss),
        "miss": miss,
    }
    c_chip = CoreChip(**values, youngest=int(chip.youngest), ports=int(chip.ports))
    totals = Totals()
    n = len(kernel.code)
    issues, waits, idles = np.zeros(n), np.zeros((n, len(REASONS))), np.zeros((n, len(REASONS)))
    finished, stuck = np.zeros(len(blocks)), np.zeros(64, np.int32)
    at = lambda x: x.ctypes.data_as(ctypes.c_void_p)  # noqa: E731
    failed = core().simulate(
        ctypes.byref(c_chip), n, at(ops), at(rows), at(starts), at(positions), at(instances), len(blocks),
        len(blocks[0]), at(which_array), held, ctypes.byref(totals), at(issues), at(waits), at(idles), at(finished),
        at(stuck),
    )  # fmt: skip
    if failed:
        where = Counter(str(kernel.code[p]) for p in stuck[:failed])
        lines = "".join(f"\n    {n} warps: {text}" for text, n in where.items())
        raise RuntimeError(f"{kernel.name}: warps wait for ever, at barriers that others do not come to:{lines}")
    busy = dict(zip(RESOURCES, totals.busy, strict=True))
    idle = Counter({r: x for r, x in zip(REASONS, totals.idle, strict=True) if x})
    return Result(totals.clocks, totals.issued, busy, idle, issues, waits, idles, finished)
