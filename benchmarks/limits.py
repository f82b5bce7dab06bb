"""The machine's limits, which every run measures first: copies, matrix products, exponentials.

The lower bound on an op's time is the largest of three:

    copy         the time of a copy that reads and writes as many bytes
    matrix       its matrix products at the rate of one large product in the same dtype
    exponential  its exponentials at the rate of the unit for exponentials
"""

from __future__ import annotations

import bisect
import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch

from benchmarks.timing import Clock

COPY_BYTES = tuple(2**e for e in range(16, 32))
GEMM_SIZE = {"cuda": 8192, "cpu": 1024}


@dataclass(frozen=True)
class Limits:
    dtype: str
    copies: tuple[tuple[int, float], ...]  # (bytes read and written, microseconds), in ascending order
    gemm_flops: float  # FLOP/s
    gemm_size: int
    exponentials: float | None  # per second; None if they cannot be measured

    @property
    def copy_rate(self) -> float:
        """Returns the bytes per second, read and written, of the largest copy."""
        moved, us = self.copies[-1]
        return moved / us * 1e6

    def copy_us(self, moved: int) -> float:
        """Returns the microseconds of a copy that reads and writes `moved` bytes in total.

        Between two measured sizes it interpolates logarithmically. Larger copies have the rate of the largest measured
        one, smaller ones the time of the smallest.
        """
        sizes = [size for size, _ in self.copies]
        if moved >= sizes[-1]:
            return self.copies[-1][1] * moved / sizes[-1]
        if moved <= sizes[0]:
            return self.copies[0][1]
        right = bisect.bisect_left(sizes, moved)
        (s0, t0), (s1, t1) = self.copies[right - 1], self.copies[right]
        share = math.log(moved / s0) / math.log(s1 / s0)
        return t0 * (t1 / t0) ** share

    def lower_bound(self, moved: int, flops: int, exponentials: int = 0) -> tuple[float, str]:
        """Returns the lower bound in microseconds, and which limit sets it."""
        times = {"copy": self.copy_us(moved), "matrix": flops / self.gemm_flops * 1e6}
        if self.exponentials:
            times["exponential"] = exponentials / self.exponentials * 1e6
        bound = max(times, key=times.get)
        return times[bound], bound

    def lower_bounds(self, work: list[tuple[int, int, int]]) -> tuple[float, str]:
        """Returns the sum of the lower bounds of successive passes, and which limit sets the largest of them."""
        each = [self.lower_bound(*w) for w in work]
        return sum(us for us, _ in each), max(each)[1]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"copies": [list(c) for c in self.copies], "copy_rate": self.copy_rate}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        values = {name: value for name, value in values.items() if name != "copy_rate"}
        return cls(**values | {"copies": tuple((size, us) for size, us in values["copies"])})


def measure(clock: Clock, dtype: torch.dtype, quick: bool) -> Limits:
    """Measures the limits of the clock's device."""
    on_gpu = clock.on_gpu
    sizes = [s for s in COPY_BYTES if s <= (2**31 if on_gpu else 2**26)]
    copies, longest = [], 0.0
    for size in sizes[:: 1 if on_gpu and not quick else 2]:
        longest = max(longest, _copy_us(clock, size))  # if a larger copy seems faster, that is noise
        copies.append((size, longest))
    size = GEMM_SIZE[clock.device.type]
    gemm = 2 * size**3 / _gemm_us(clock, dtype, size) * 1e6
    return Limits(str(dtype).removeprefix("torch."), tuple(copies), gemm, size, _exponentials(clock))


def _copy_us(clock: Clock, moved: int) -> float:
    pairs = [tuple(torch.ones(moved // 4, dtype=torch.int16, device=clock.device) for _ in "ab") for _ in range(3)]
    return statistics.median(clock.samples(lambda pair: pair[0].copy_(pair[1]), lambda i: pairs[i % len(pairs)]))


def _gemm_us(clock: Clock, dtype: torch.dtype, size: int) -> float:
    """Times a product of random matrices: zeros take less power, so a GPU multiplies them faster."""
    pairs = [tuple(torch.randn(size, size, device=clock.device).to(dtype) for _ in "ab") for _ in range(2)]
    return statistics.median(clock.samples(lambda pair: pair[0] @ pair[1], lambda i: pairs[i % len(pairs)]))


def _exponentials(clock: Clock) -> float | None:
    if not clock.on_gpu:
        x = torch.randn(16384)  # 64 KiB, which fits the L2 cache
        return x.numel() / statistics.median(clock.samples(lambda x: x.exp(), lambda i: x)) * 1e6
    try:
        from benchmarks.exponential import ITERATIONS, exponentials
    except ImportError:  # without Triton a lower bound has two terms
        return None
    x = torch.rand(2**22, device=clock.device)
    return x.numel() * ITERATIONS / statistics.median(clock.samples(exponentials, lambda i: x)) * 1e6
