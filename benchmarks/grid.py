"""Sizes of the cases: the papers' shapes on a GPU, the same widths with fewer tokens on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Grid:
    """Holds the sizes that the cases are made from."""

    tokens: int  # per batch
    small: bool = False  # --quick on a CPU: one small shape per op
    sweeps: bool = False  # also widths, lengths and vocabularies around the papers'

    @property
    def masked(self) -> int:
        """Returns the number of positions that BERT's masked LM predicts: 15 % of the tokens."""
        return round(0.15 * self.tokens)

    def widths(self, papers: tuple[int, ...], sweep: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the papers' widths, and with sweeps the others; a small grid has only the first."""
        if self.small:
            return papers[:1]
        return papers + sweep if self.sweeps else papers


def grid(device: torch.device, *, quick: bool, sweeps: bool = True) -> Grid:
    """Returns the grid for a device."""
    if device.type == "cpu":
        return Grid(tokens=512 if quick else 2048, small=quick, sweeps=sweeps and not quick)
    return Grid(tokens=32768, sweeps=sweeps and not quick)
