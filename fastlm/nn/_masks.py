"""Masks as torch.nn has them, turned into what the attention op takes.

These are the rows of each sequence, and whether a query sees the future.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

HOLES = "padding between valid positions"


class Rows(NamedTuple):
    """Holds the rows of a padded batch's sequences: b has rows starts[b] to starts[b] + lengths[b] - 1. (B,) int32."""

    starts: Tensor
    lengths: Tensor


def rows_of(module: str, mask: Tensor, x: Tensor, batch_first: bool) -> Rows | None:
    """Returns the rows of a bool mask (B, S), or (S,) for x (S, E), that is True at padding.

    There must be no padding between valid positions, as `checked_rows` has it.

    Raises ValueError if the mask does not have the batch and the sequence of x.
    """
    expected = batch_and_length(x, batch_first)[3 - x.ndim :]
    if tuple(mask.shape) != expected:
        raise ValueError(f"{module}: the key padding mask must have shape {expected}, got {tuple(mask.shape)}")
    mask = mask if mask.ndim == 2 else mask[None]
    return checked_rows(mask, f"{module}: the key padding mask has {HOLES}; give such a mask as floats")


def checked_rows(mask: Tensor, message: str) -> Rows | None:
    """Returns the rows of a bool mask (B, S) that is True at padding.

    With padding between valid positions the result is None for an eager call on a CPU. Elsewhere the host does not wait
    for the values, and such a mask is an error of the device, an assertion with the message.
    """
    valid = ~mask
    starts = (valid.cumsum(-1, dtype=torch.int32) == 0).sum(-1, dtype=torch.int32)
    begins = (valid[:, 1:] & mask[:, :-1]).sum(-1) + valid[:, :1].sum(-1)
    has_no_holes = (begins <= 1).all()
    if mask.device.type == "cpu" and not torch.compiler.is_compiling():
        if not has_no_holes:
            return None
    elif mask.device.type != "meta":
        torch._assert_async(has_no_holes, message)
    return Rows(starts, valid.sum(-1, dtype=torch.int32))


def is_causal_mask(mask: Tensor, length: int) -> bool:
    """Returns whether a mask, bool or of 0 and -inf, hides exactly the future of each of `length` positions.

    The host waits for the values. Under torch.compile, and without values, the result is False.
    """
    if mask.shape != (length, length) or torch.compiler.is_compiling() or mask.device.type == "meta":
        return False
    future = torch.ones(length, length, dtype=torch.bool, device=mask.device).triu_(1)
    if mask.dtype != torch.bool:
        future = torch.zeros_like(mask).masked_fill_(future, -torch.inf)
    return torch.equal(mask, future)


def causal_mask(length: int, device: torch.device) -> Tensor:
    """Returns the bool mask (length, length) that is True where a query may not see a key."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu_(1)


def padding_mask(lengths: Tensor, starts: Tensor | None, length: int) -> Tensor:
    """Returns the bool mask (B, length) that is False in the rows of the sequences, and True in all others."""
    row = torch.arange(length, device=lengths.device)
    if starts is None:
        return row >= lengths[:, None]
    return (row < starts[:, None]) | (row >= (starts + lengths)[:, None])


def batch_and_length(x: Tensor, batch_first: bool) -> tuple[int, int]:
    """Returns B and S of x (S, B, E), with batch_first (B, S, E), or (S, E)."""
    if x.ndim == 2:
        return 1, x.shape[0]
    return (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
