"""The predicted time of a launch, and where its issue slots go."""

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
    """Holds what is predicted of a launch. Nothing here was measured."""

    kernel: Kernel
    us: float  # as simulated
    clocks: float  # of an SM, per CTA
    held: int  # CTAs on an SM
    waves: float  # CTAs that the busiest SM works through, in average ones
    bound_us: float  # the bytes from and to HBM at its rate
    hbm_bytes: float
    resources: dict[str, float]  # part of its capacity in use while CTAs follow one another
    idle: dict[str, float]  # part of the issue slots not used, by reason
    steady: Result
    classes: int  # different ways through the kernel among the CTAs that were carried out
    guesses: Counter  # addresses of branches that depend on data, and how often they were passed
    spread: float  # half the difference between runs in which CTAs meet differently, as a part of the time
    conflicts: dict[int, float]  # addresses of accesses to shared memory with bank conflicts, and by how much

    @property
    def scaled_us(self) -> float:
        """Returns the predicted time: `us` times SCALE, which fades out where HBM sets the pace."""
        waits_for_hbm = min(1.0, max(0.0, (self.resources["hbm"] - 0.8) / 0.15))
        return self.us * (SCALE + (1 - SCALE) * waits_for_hbm)

    @property
    def busiest(self) -> str:
        """Returns the resource of which most is in use."""
        return max(self.resources, key=lambda name: self.resources[name])

    def cost(self) -> np.ndarray:
        """Returns, by position, the issue slots used and lost there. Their sum is all there are."""
        return self.steady.issues + self.steady.idles.sum(1)

    def hot_loop(self) -> tuple[int, int]:
        """Returns the loop that costs most, as positions: the innermost of those with 3/4 of the most."""
        cost = self.cost()
        sums = [(float(cost[a : b + 1].sum()), a, b) for a, b in self.kernel.loops()]
        if not sums:
            return 0, len(self.kernel.code) - 1
        most = max(s for s, _, _ in sums)
        _, a, b = min((b - a, a, b) for s, a, b in sums if s >= 0.75 * most)
        return a, b

    def hot_spots(self, count: int) -> str:
        """Lists the instructions of the hot loop by the issue slots that they use or that are lost until they issue."""
        cost, total, code = self.cost(), 4 * self.steady.clocks, self.kernel.code
        a, b = self.hot_loop()
        lines = [
            f"predicted: loop {code[a].address:x} to {code[b].address:x}, {b - a + 1} instructions, "
            f"{cost[a : b + 1].sum() / total:.0%} of all issue slots, "
            f"{self.steady.issues[a : b + 1].sum() / total:.0%} used",
            "  slots  issued   lost  lost to",
        ]
        for n in sorted(range(a, b + 1), key=lambda n: -cost[n])[:count]:
            lost = self.steady.idles[n]
            why = ", ".join(f"{REASONS[k]} {lost[k] / total:.1%}" for k in np.argsort(-lost)[:2] if lost[k] > 0)
            shares = f"{cost[n] / total:7.2%} {self.steady.issues[n] / total:7.2%} {lost.sum() / total:6.2%}"
            lines.append(f"{shares}  {why:40.40} {code[n]}")
        return "\n".join(lines)

    def details(self) -> str:
        """Describes resources in use, issue slots lost, bank conflicts, and branches that depend on data."""
        used, lost, worst = (_largest(x) for x in (self.resources, self.idle, self.conflicts))
        lines = [
            f"{self.held} CTAs of {self.kernel.registers} registers per thread on an SM, {self.clocks:.0f} clocks per "
            f"CTA, +- {self.spread:.1%}; {self.hbm_bytes / 1e6:.0f} MB from and to HBM in {self.bound_us:.1f} us",
            "in use: " + ", ".join(f"{name} {part:.0%}" for name, part in used),
            "issue slots lost: " + ", ".join(f"{name} {part:.0%}" for name, part in lost if part >= 0.005),
        ]
        if worst:
            lines.append("bank conflicts: " + ", ".join(f"{address:x} x{times:.1f}" for address, times in worst))
        if self.guesses:
            lines.append("branches that depend on data: " + ", ".join(f"{a:x}" for a in list(self.guesses)[:8]))
        return "\n".join(lines)


def _largest(parts: dict) -> list[tuple]:
    return sorted(parts.items(), key=lambda item: -item[1])[:8]
