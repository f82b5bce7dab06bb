"""The keep probability of dropout, in steps of 1/256. Imports no torch: configurations check their values with it."""

from __future__ import annotations

LEVELS = 256  # `keep == LEVELS`: nothing is dropped


def keep_count(dropout_p: float, name: str = "dropout_p") -> int:
    """Returns the k for which the keep probability k / 256 is nearest to 1 - dropout_p; dropout_p is in [0, 1).

    Raises ValueError, with the probability's name, if k rounds to 256, which drops nothing, although dropout_p > 0, or
    if k rounds to 0.
    """
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {dropout_p}")
    keep = round((1.0 - dropout_p) * LEVELS)
    if dropout_p > 0.0 and not 0 < keep < LEVELS:
        raise ValueError(
            f"{name} is applied in steps of 1/256 and {dropout_p} rounds to {1 - keep / LEVELS:g}: "
            f"give 0, or a value from {1 / LEVELS:.4f} to {1 - 1 / LEVELS:.4f}"
        )
    return keep
