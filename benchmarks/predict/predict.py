"""Predicts a launch: simulates enough CTAs on one SM that their rate is steady, and counts the launch's waves."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from benchmarks.predict.blocks import Blocks, requested, touched
from benchmarks.predict.chip import Chip, resident
from benchmarks.predict.figures import OF_A_MULTIPROCESSOR, RESOURCES
from benchmarks.predict.instructions import Kernel
from benchmarks.predict.launch import Launch
from benchmarks.predict.prediction import Prediction
from benchmarks.predict.simulate import simulate

BLOCKS = 12  # that are simulated at least before a multiprocessor is taken to be in its stride
# Of a block's launch: how the blocks on a multiprocessor happen to meet makes a percent or two, over which the mean of
# several runs is taken.
DELAYS = (0.67, 1.33, 1.0)


def waves(lengths: list[float], multiprocessors: int, held: int) -> float:
    """How many average blocks the busiest multiprocessor works through: blocks in order go to whichever place is free.

    Those that are left alone on a multiprocessor at the end are taken to be no faster for it.
    """
    places = [0.0] * (multiprocessors * held)
    for length in lengths:
        heapq.heapreplace(places, places[0] + length * held)
    return max(places)


def predict(
    kernel: Kernel,
    launch: Launch,
    chip: Chip = Chip(),  # noqa: B008
    hbm_bytes: float | None = None,
    held: int = 0,
    decide: Callable[[int, int], bool | None] | None = None,
    conflicts: bool = True,
) -> Prediction:
    """The time of a launch.

    hbm_bytes: what it moves from and to HBM; by default what the blocks that are looked at touch, each byte once.
    decide(address, visit): whether a branch is taken whose predicate depends on data; None for the default, which is
    not to take it unless it passes by a call (of a slow path).
    """
    blocks = launch.blocks
    held = held or resident(kernel, launch.threads, launch.dynamic)
    held = min(held, -(-blocks // chip.multiprocessors))
    if held == 0:
        raise ValueError(f"{kernel.name}: a multiprocessor has no room for a block")
    found = Blocks(kernel, launch, chip, decide, conflicts)
    single = blocks <= held * chip.multiprocessors  # all at once
    if single:
        looked = sorted({0, blocks // 2, blocks - 1})
        first = max(looked, key=lambda n: sum(len(w.positions) for w in found.trace_block(n).warps))
        first %= chip.multiprocessors
        ids = list(range(first, blocks, chip.multiprocessors))
        sequence = [found.trace_block(n).warps for n in ids]
    else:
        order = found.order()
        counts = Counter(order)
        share = math.gcd(*counts.values())
        if len(counts) > 96 or sum(counts.values()) // share > 96:  # some of them, and shares are not kept exactly
            ids = list(counts)[:: -(-len(counts) // 64)]
        else:
            ids = [n for n in counts for _ in range(counts[n] // share)]
        sequence = [found.trace_block(n).warps for n in ids]
    asked = sum(requested(kernel, b, found.table, chip) for b in sequence) / len(sequence) * blocks
    if hbm_bytes is None:
        hbm_bytes = touched(found, blocks)
    miss = min(1.0, hbm_bytes / max(1.0, asked))

    def run(n, delay=1.0):
        on = replace(chip, launch=chip.launch * delay)
        return simulate(kernel, [sequence[j % len(sequence)] for j in range(n)], found.table, held, on, miss)

    if single:
        load = run(len(sequence))
        clocks, count = load.clocks, len(sequence)
        block, spread = clocks / count, 0.0
    else:
        few = len(sequence) * held // math.gcd(len(sequence), held)
        few *= -(-BLOCKS // few)
        many = few * 3 if few < 4 * BLOCKS else few * 2
        each = []
        for delay in DELAYS:
            start, load = run(few, delay), run(many, delay)
            each.append((load.clocks - start.clocks) / (many - few))
        block = sum(each) / len(each)
        spread = (max(each) - min(each)) / 2 / block
        length = {n: sum(len(w.positions) for w in found.trace_block(n).warps) for n in ids}
        mean = sum(length[n] for n in ids) / len(ids)
        count = waves([length.get(n, mean) / mean for n in order], chip.multiprocessors, held)
        clocks = block * count
    used = {n: load.busy[n] / load.clocks / (1 if n in OF_A_MULTIPROCESSOR else 4) for n in RESOURCES}
    idle = {r: x / 4 / load.clocks for r, x in load.idle.items()}
    bound = hbm_bytes / chip.hbm * 1e6
    us = max(clocks / chip.ghz / 1e3, bound) + chip.overhead
    guesses = sum((t.guesses for t in found.traces.values()), Counter())
    bad = {kernel.code[p].address: c for p, c in kernel.conflicted.items()}
    classes = len({Blocks.kind(t) for t in found.traces.values()})
    return Prediction(kernel, us, block, held, count, bound, hbm_bytes, used, idle, load, classes, guesses, spread, bad)
