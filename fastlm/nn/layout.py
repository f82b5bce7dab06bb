"""Where the sequences of a batch lie: padded rows (B, S) with lengths, or packed rows (T,) without padding."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Layout(NamedTuple):
    """Says where a batch's sequences lie, and where the batch begins in a whole batch that it is a part of.

    lengths: (B,) int32, valid tokens of padded sequences; None if all have S.
    cu_seqlens: (B + 1,) int32, the first packed row of each sequence, and T at the end; None for padded sequences.
    max_seqlen: an upper bound of the lengths of packed sequences, a number of the host.
    first_sequence, first_row: (1,) int64, the coordinates of dropout (see `fastlm.dropout`); None means 0.
    """

    lengths: Tensor | None = None
    cu_seqlens: Tensor | None = None
    max_seqlen: int | None = None
    first_sequence: Tensor | None = None
    first_row: Tensor | None = None

    def sequence_ids(self, rows: int) -> Tensor:
        """Returns the number of the sequence of each packed row, (T,) int64."""
        row = torch.arange(rows, device=self.cu_seqlens.device)
        return torch.bucketize(row, self.cu_seqlens[1:].long(), right=True)

    def position_ids(self, rows: int) -> Tensor | None:
        """Returns the position of each packed row in its sequence, (T,) int64; None for padded sequences."""
        if self.cu_seqlens is None:
            return None
        return torch.arange(rows, device=self.cu_seqlens.device) - self.cu_seqlens[self.sequence_ids(rows)]

    def sequence_lengths(self, tokens: Tensor) -> Tensor:
        """Returns the length of each sequence of tokens (B, S) or (T,), (B,) integers."""
        if self.cu_seqlens is not None:
            return self.cu_seqlens.diff()
        if self.lengths is not None:
            return self.lengths
        return torch.full(tokens.shape[:1], tokens.shape[1], device=tokens.device)

    def sequence_totals(self, x: Tensor) -> Tensor:
        """Returns, at each position of integers x (B, S) or (T,), the sum of x over the position's sequence."""
        if self.cu_seqlens is None:
            return x.sum(-1, keepdim=True).expand_as(x)
        before = F.pad(x.cumsum(0), (1, 0))  # the sum of the rows before each row
        return before[self.cu_seqlens.long()].diff()[self.sequence_ids(x.shape[0])]

    def by_sequence(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns x (B, S, ...) or (T, ...) as (B, L, ...), with L = S or max_seqlen, and which are valid, (B, L) bool.

        The second is None if all are valid. The other places of a packed x get rows of other sequences.
        """
        if self.cu_seqlens is None:
            position = torch.arange(x.shape[1], device=x.device)
            return x, None if self.lengths is None else position < self.lengths[:, None]
        position = torch.arange(self.max_seqlen, device=x.device)
        index = self.cu_seqlens[:-1, None].long() + position
        return x[index.clamp(max=x.shape[0] - 1)], position < self.cu_seqlens.diff()[:, None]
