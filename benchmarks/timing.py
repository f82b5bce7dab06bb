"""Times a call: samples in microseconds, over inputs that rotate.

On a GPU each sample lies between two CUDA events. Before the first event:

- a buffer of twice the L2 cache's size is read, to flush it. (Writing it would leave lines that are written back during
  the sample.)
- a sleeping kernel keeps the GPU busy until the host has enqueued the whole call, so that the host's launch overhead is
  not measured.

On a CPU a sample is a difference of time.perf_counter(), and caches are not flushed.

Steps of training are timed back to back, as they are run: a GPU's sample lies between the ends of two successive steps,
and includes what the GPU waits for the host.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Effort:
    """Bounds the samples of a measurement: as many as fit in `seconds`, but at least `least` and at most `most`."""

    least: int = 10
    most: int = 30
    seconds: float = 0.3

    def enough(self, samples: int, started: float) -> bool:
        return samples >= self.most or (samples >= self.least and time.perf_counter() - started > self.seconds)


WARM_UP = 3  # calls
FULL, QUICK = Effort(), Effort(least=5, most=20, seconds=0.08)


class Clock:
    """Takes samples on one device."""

    def __init__(self, device: torch.device, effort: Effort):
        self.device, self.effort = device, effort
        self.on_gpu = device.type == "cuda"
        if self.on_gpu:
            properties = torch.cuda.get_device_properties(device)
            self._flush = torch.ones(2 * properties.L2_cache_size // 4, device=device)
            self._cycles_per_us = 2000  # 2 GHz is above most GPUs' clocks; with a lower clock the sleep is only longer

    def samples(self, call: Callable[[Any], Any], prepare: Callable[[int], Any]) -> tuple[float, ...]:
        """Returns the microseconds of `call(prepare(i))` for i = 0, 1, ..., without those of `prepare`."""
        for i in range(WARM_UP):  # compiles, tunes, allocates; the last round measures the host's time
            state = prepare(i)
            self._wait()
            started = time.perf_counter()
            call(state)
            host_us = (time.perf_counter() - started) * 1e6
        self._wait()
        taken, started = [], time.perf_counter()
        gc_was_on = gc.isenabled()
        gc.disable()
        try:
            while not self.effort.enough(len(taken), started):
                state = prepare(len(taken))
                taken.append(self._gpu_sample(call, state, host_us) if self.on_gpu else self._cpu_sample(call, state))
        finally:
            if gc_was_on:
                gc.enable()
        return tuple(round(t, 3) for t in taken)

    def steps(self, step: Callable[[Any], Any], prepare: Callable[[int], Any]) -> tuple[float, ...]:
        """Returns the microseconds of `step(prepare(i))` for i = 0, 1, ..., run one after the other."""
        if not self.on_gpu:
            return self.samples(step, prepare)
        for i in range(WARM_UP):
            step(prepare(i))
        ends, started = [self._event()], time.perf_counter()
        while not self.effort.enough(len(ends) - 1, started):
            step(prepare(len(ends)))
            ends.append(self._event())
        self._wait()
        return tuple(round(a.elapsed_time(b) * 1e3, 3) for a, b in itertools.pairwise(ends))

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _gpu_sample(self, call: Callable[[Any], Any], state: Any, host_us: float) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.sum()
        torch.cuda._sleep(int(min(2 * host_us + 50, 20_000) * self._cycles_per_us))
        start.record()
        call(state)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3

    def _cpu_sample(self, call: Callable[[Any], Any], state: Any) -> float:
        started = time.perf_counter()
        call(state)
        return max((time.perf_counter() - started) * 1e6, 0.001)

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def extra_bytes(self, call: Callable[[], Any]) -> int | None:
        """Returns the peak of GPU memory during `call`, minus the larger of the memory before and after it, in bytes.

        The memory after it includes its result. Returns None on a CPU.
        """
        if not self.on_gpu:
            return None
        self._wait()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        returned = call()
        self._wait()
        peak, after = torch.cuda.max_memory_allocated(self.device), torch.cuda.memory_allocated(self.device)
        del returned
        return peak - max(after, before)
