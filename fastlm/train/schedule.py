"""Learning rate and sequence length as pure functions of the step, so that a resumed run continues exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

Phases = Sequence[tuple[float, int]]


def learning_rate(
    step: int, *, peak: float, warmup: float, steps: int, decay: str, schedule: str = "warmup-then-decay"
) -> float:
    """Returns the rate of update `step` (0, 1, ..., steps - 1): linear warm-up over `warmup` updates, and decay to 0.

    decay, a function of x from 1 at x = 0 to 0 at x = 1: "cosine", 0.5 (1 + cos(pi x)) (GPT-1, section 4.1), or
    "linear", 1 - x (BERT, appendix A.2). With n = step, w = warmup and T = steps, the schedules are, as multiples of
    `peak`:

        warmup-then-decay      (n + 1) / w while n < w, then decay((n - w) / (T - w)). No update has rate 0.
        warmup-times-decay     min(n / w, 1) decay(n / T): the code of GPT-1's fine-tuning, and ELECTRA's
        warmup-replaces-decay  n / w while n < w, then decay(n / T): BERT's code. The rate falls at update w.

    With warm-up, the first update of the last two has rate 0. In "warmup-times-decay" `warmup` may be a fraction of an
    update. Raises ValueError for another name.
    """
    if schedule == "warmup-then-decay":
        if step < warmup:
            return peak * (step + 1) / warmup
        return peak * _decayed((steps - step) / (steps - warmup), decay)
    left = _decayed((steps - step) / steps, decay)
    if schedule == "warmup-times-decay":
        return peak * left * (min(step / warmup, 1.0) if warmup else 1.0)
    if schedule == "warmup-replaces-decay":
        return peak * (step / warmup if step < warmup else left)
    raise ValueError(f"schedule: one of warmup-then-decay, -times-decay, -replaces-decay expected, not {schedule!r}")


def _decayed(left: float, decay: str) -> float:
    """Returns the decay at x = 1 - left."""
    if decay == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    if decay == "linear":
        return left
    raise ValueError(f'decay: "cosine" or "linear" expected, not {decay!r}')


def rate_correction(step: int, betas: tuple[float, float]) -> float:
    """Returns sqrt(1 - beta2^n) / (1 - beta1^n) for n = step + 1, Adam's bias correction as a factor of the rate.

    The code of GPT-1's fine-tuning multiplies the rate of Adam without bias correction by it. Epsilon then stands
    outside the correction, and the decoupled weight decay carries it. (Kingma and Ba 2015, end of section 2, without
    their change of epsilon.)
    """
    beta1, beta2 = betas
    return math.sqrt(1 - beta2 ** (step + 1)) / (1 - beta1 ** (step + 1))


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
