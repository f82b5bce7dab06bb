"""Learning rate and sequence length as pure functions of the step, so that a resumed run continues exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

Phases = Sequence[tuple[float, int]]


def learning_rate(step: int, *, peak: float, warmup: int, steps: int, decay: str) -> float:
    """Returns the rate of update `step` (0, 1, ..., steps - 1): linear warm-up over `warmup` updates, then decay to 0.

    decay: "cosine" (GPT-1, section 4.1) or "linear" (BERT, appendix A.2). The last update of the warm-up and the first
    of the decay both have the peak. The rate would be 0 at update `steps`, which is not made.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    left = (steps - step) / (steps - warmup)
    if decay == "cosine":
        return peak * 0.5 * (1 - math.cos(math.pi * left))
    if decay == "linear":
        return peak * left
    raise ValueError(f'decay: "cosine" or "linear" expected, not {decay!r}')


def sequence_length(step: int, *, steps: int, phases: Phases) -> int:
    """Returns the sequence length of update `step`; phases = ((fraction of the updates, length), ...).

    BERT's phases are ((0.9, 128), (0.1, 512)) (appendix A.2).
    """
    end = 0.0
    for fraction, length in phases:
        end += fraction
        if step < round(end * steps):
            return length
    return phases[-1][1]
