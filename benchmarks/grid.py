"""How large the cases are: the papers' shapes on a GPU, their widths with fewer tokens on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Grid:
    """tokens: rows of a batch; sweeps: also the widths, lengths and vocabularies around the papers'."""

    tokens: int
    small: bool = False  # --quick on a CPU: one small shape an op
    sweeps: bool = False

    @property
    def masked(self) -> int:
        """BERT's predicted positions, 15 %."""
        return round(0.15 * self.tokens)

    def widths(self, papers: tuple[int, ...], sweep: tuple[int, ...]) -> tuple[int, ...]:
        """The papers' numbers, and those around them; in a small grid only the first."""
        if self.small:
            return papers[:1]
        return papers + sweep if self.sweeps else papers


def grid(device: torch.device, *, quick: bool, sweeps: bool = True) -> Grid:
    if device.type == "cpu":
        return Grid(tokens=512 if quick else 2048, small=quick, sweeps=sweeps and not quick)
    return Grid(tokens=32768, sweeps=sweeps and not quick)
