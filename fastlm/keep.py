"""The keep probability of dropout, in steps of 1/256. It imports no torch, because configurations use it."""

from __future__ import annotations

LEVELS = 256  # keep == LEVELS means no dropout


def keep_count(dropout_p: float) -> int:
    """Returns the integer k for which k / 256 is nearest to the keep probability 1 - dropout_p, dropout_p in [0, 1).

    Raises ValueError if dropout_p > 0 and k is 256, which would drop nothing, or if k is 0.
    """
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}")
    keep = round((1.0 - dropout_p) * LEVELS)
    if dropout_p > 0.0 and not 0 < keep < LEVELS:
        raise ValueError(
            f"dropout_p is applied in steps of 1/256 and {dropout_p} rounds to {1 - keep / LEVELS:g}: "
            f"give 0, or a value from {1 / LEVELS:.4f} to {1 - 1 / LEVELS:.4f}"
        )
    return keep
