"""Predicts a launch: simulates CTAs on one SM until their rate is steady, and counts the CTAs of the busiest SM."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.predict.blocks import Blocks, requested, touched
from benchmarks.predict.chip import Chip, resident
from benchmarks.predict.figures import OF_A_MULTIPROCESSOR, RESOURCES
from benchmarks.predict.instructions import Kernel
from benchmarks.predict.launch import Launch
from benchmarks.predict.prediction import Prediction
from benchmarks.predict.simulate import Result, simulate

BLOCKS = 12  # CTAs that are simulated at least, before the rate counts as steady
# Factors of a CTA's start-up time. How CTAs on an SM meet changes the time by 1 to 2 %; three runs are averaged.
DELAYS = (0.67, 1.33, 1.0)
MOST_KINDS = 96  # CTAs in a sequence; of more kinds, some are chosen


def predict(
    kernel: Kernel,
    launch: Launch,
    chip: Chip = Chip(),  # noqa: B008
    hbm_bytes: float | None = None,
    most_bytes: float = math.inf,
    decide: Callable[[int, int], bool | None] | None = None,
    conflicts: bool = True,
) -> Prediction:
    """Predicts the time of a launch.

    Args:
        hbm_bytes: the bytes that it moves from and to HBM. By default each byte that the CTAs touch counts once.
        most_bytes: an upper bound of that default.
        decide: takes an address and a visit, and returns whether a branch is taken whose predicate depends on data;
            None for the default, by which it is not taken unless it passes by a call of a slow path.
        conflicts: whether bank conflicts cost time.

    Raises:
        ValueError: an SM has no room for a CTA, or the walk meets code that it does not understand.
    """
    held = min(resident(kernel, launch.threads, launch.dynamic), -(-launch.blocks // chip.multiprocessors))
    if held == 0:
        raise ValueError(f"{kernel.name}: an SM has no room for a CTA of {launch.threads} threads")
    found = Blocks(kernel, launch, chip, decide, conflicts)
    at_once = launch.blocks <= held * chip.multiprocessors
    ids, order = _one_sm(found, chip) if at_once else _representatives(found)
    sequence = [found.trace_block(n).warps for n in ids]
    asked = sum(requested(kernel, b, found.table, chip) for b in sequence) / len(sequence) * launch.blocks
    if hbm_bytes is None:
        hbm_bytes = min(touched(found, launch.blocks), most_bytes)
    miss = min(1.0, hbm_bytes / max(1.0, asked))

    def run(count: int, delay: float = 1.0) -> Result:
        on = replace(chip, launch=chip.launch * delay)
        return simulate(kernel, [sequence[j % len(sequence)] for j in range(count)], found.table, held, on, miss)

    if at_once:
        result = run(len(sequence))
        rate, waves = _Rate(result.clocks / len(sequence), 0.0, result), float(len(sequence))
    else:
        rate, waves = _steady_rate(run, len(sequence), held), _waves(found, ids, order, held)
    return _prediction(found, rate, waves, held, hbm_bytes)


@dataclass(frozen=True)
class _Rate:
    clocks: float  # per CTA
    spread: float
    result: Result


def _one_sm(found: Blocks, chip: Chip) -> tuple[list[int], list[int]]:
    """Returns the CTAs of the SM that has the longest of those looked at. All CTAs run at the same time."""
    blocks = found.launch.blocks
    looked = sorted({0, blocks // 2, blocks - 1})
    first = max(looked, key=found.length)
    ids = list(range(first % chip.multiprocessors, blocks, chip.multiprocessors))
    return ids, ids


def _representatives(found: Blocks) -> tuple[list[int], list[int]]:
    """Returns CTAs to simulate, each kind in its share, and for each CTA of the launch the one that stands for it."""
    order = found.order()
    counts = Counter(order)
    share = math.gcd(*counts.values())
    if len(counts) > MOST_KINDS or len(order) // share > MOST_KINDS:  # the shares are not kept exactly
        return list(counts)[:: -(-len(counts) // 64)], order
    return [n for n in counts for _ in range(counts[n] // share)], order


def _steady_rate(run: Callable[[int, float], Result], kinds: int, held: int) -> _Rate:
    """Returns the clocks per CTA between a short and a long run, so that start and end do not count."""
    few = kinds * held // math.gcd(kinds, held)
    few *= -(-BLOCKS // few)
    many = few * 3 if few < 4 * BLOCKS else few * 2
    each = []
    for delay in DELAYS:
        start, result = run(few, delay), run(many, delay)
        each.append((result.clocks - start.clocks) / (many - few))
    clocks = sum(each) / len(each)
    return _Rate(clocks, (max(each) - min(each)) / 2 / clocks, result)


def _waves(found: Blocks, ids: list[int], order: list[int], held: int) -> float:
    """Returns how many average CTAs the busiest SM works through. CTAs in order go to whichever place is free.

    CTAs that are left alone on an SM at the end are assumed to be no faster for it.
    """
    length = {n: found.length(n) for n in ids}
    mean = sum(length[n] for n in ids) / len(ids)
    places = [0.0] * (found.chip.multiprocessors * held)
    for n in order:
        heapq.heapreplace(places, places[0] + length.get(n, mean) / mean * held)
    return max(places)


def _prediction(found: Blocks, rate: _Rate, waves: float, held: int, hbm_bytes: float) -> Prediction:
    kernel, chip, result = found.kernel, found.chip, rate.result
    bound = hbm_bytes / chip.hbm * 1e6
    return Prediction(
        kernel=kernel,
        us=max(rate.clocks * waves / chip.ghz / 1e3, bound) + chip.overhead,
        clocks=rate.clocks,
        held=held,
        waves=waves,
        bound_us=bound,
        hbm_bytes=hbm_bytes,
        resources={n: result.busy[n] / result.clocks / (1 if n in OF_A_MULTIPROCESSOR else 4) for n in RESOURCES},
        idle={reason: clocks / 4 / result.clocks for reason, clocks in result.idle.items()},
        steady=result,
        classes=len({Blocks.kind(t) for t in found.traces.values()}),
        guesses=sum((t.guesses for t in found.traces.values()), Counter()),
        spread=rate.spread,
        conflicts={kernel.code[p].address: times for p, times in kernel.conflicted.items()},
    )
