"""The predicted time of a launch, and where its clocks go."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from benchmarks.predict.chip import SCALE
from benchmarks.predict.figures import REASONS
from benchmarks.predict.instructions import Kernel
from benchmarks.predict.simulate import Result


@dataclass
class Prediction:
    kernel: Kernel
    us: float  # as simulated
    clocks_a_block: float  # of a multiprocessor
    held: int  # blocks on a multiprocessor
    waves: float  # blocks that the busiest multiprocessor works through, in average ones
    bound_us: float  # bytes from and to HBM at its rate
    hbm_bytes: float
    resources: dict[str, float]  # part of its capacity in use while blocks flow
    idle: dict[str, float]  # part of the issue slots not used, by reason
    steady: Result
    classes: int  # different ways through the kernel among the blocks that were looked at
    guesses: Counter  # addresses of branches that depend on data, and how often they were passed
    spread: float  # half the difference between runs in which blocks meet differently, a part of the time
    conflicts: dict[int, float]  # addresses of accesses to shared memory with bank conflicts, and by how much

    @property
    def scaled_us(self) -> float:
        """With SCALE, which stands for what the model does not see in a multiprocessor: not where HBM sets the pace."""
        waits_for_hbm = min(1.0, max(0.0, (self.resources["hbm"] - 0.8) / 0.15))
        return self.us * (SCALE + (1 - SCALE) * waits_for_hbm)

    def hot_loop(self) -> tuple[int, int]:
        """Positions of the loop in which most clocks go, the innermost of those with three quarters of the most."""
        cost = self.cost()
        sums = [(float(cost[a : b + 1].sum()), a, b) for a, b in self.kernel.loops()]
        if not sums:
            return 0, len(self.kernel.code) - 1
        most = max(s for s, _, _ in sums)
        _, a, b = min((b - a, a, b) for s, a, b in sums if s >= 0.75 * most)
        return a, b

    def cost(self) -> np.ndarray:
        """By position, issue slots used and lost there: their sum is all there are."""
        return self.steady.issues + self.steady.idles.sum(1)

    def hot_spots(self, count: int = 25, loop_only: bool = True) -> str:
        """Instructions sorted by the issue slots that they use or that are lost waiting for them."""
        cost, total = self.cost(), 4 * self.steady.clocks
        a, b = self.hot_loop() if loop_only else (0, len(self.kernel.code) - 1)
        lines = [
            f"loop {self.kernel.code[a].address:x} to {self.kernel.code[b].address:x}: {b - a + 1} instructions, "
            f"{cost[a : b + 1].sum() / total:.0%} of all issue slots, "
            f"{self.steady.issues[a : b + 1].sum() / total:.0%} used",
            "  slots  issued   lost  lost to",
        ]
        for n in sorted(range(a, b + 1), key=lambda n: -cost[n])[:count]:
            lost = self.steady.idles[n]
            why = ", ".join(f"{REASONS[k]} {lost[k] / total:.1%}" for k in np.argsort(-lost)[:2] if lost[k] > 0)
            lines.append(
                f"{cost[n] / total:7.2%} {self.steady.issues[n] / total:7.2%} {lost.sum() / total:6.2%}  {why:40.40} "
                f"{self.kernel.code[n]}"
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        top = ", ".join(f"{n} {v:.0%}" for n, v in sorted(self.resources.items(), key=lambda x: -x[1])[:8])
        idle = ", ".join(f"{n} {v:.0%}" for n, v in sorted(self.idle.items(), key=lambda x: -x[1])[:7] if v >= 0.005)
        lines = [
            f"{self.scaled_us:.1f} us scaled, {self.us:.1f} us raw, +- {self.spread:.1%}; "
            f"HBM bound {self.bound_us:.1f} us "
            f"({self.hbm_bytes / 1e6:.0f} MB); {self.held} blocks of {self.kernel.registers} registers a thread on a "
            f"multiprocessor, {self.clocks_a_block:.0f} clocks a block, {self.classes} kinds of blocks",
            f"  in use: {top}",
            f"  issue slots lost: {idle}",
        ]
        if self.conflicts:
            worst = ", ".join(f"{a:x} x{c:.1f}" for a, c in sorted(self.conflicts.items(), key=lambda x: -x[1])[:6])
            lines.append(f"  bank conflicts at {worst}")
        if self.guesses:
            lines.append("  branches that depend on data: " + ", ".join(f"{a:x}" for a in list(self.guesses)[:8]))
        return "\n".join(lines)
