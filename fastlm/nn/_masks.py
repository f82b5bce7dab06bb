"""Masks as torch.nn has them, turned into what the attention op takes: lengths, and whether a query sees the future."""

from __future__ import annotations

import torch
from torch import Tensor


def lengths_of(module: str, mask: Tensor, x: Tensor, batch_first: bool) -> Tensor | None:
    """Returns the lengths (B,) int32 of a bool mask (B, S), or (S,) for x (S, E), that is True at padding.

    All padding must be at the right. Otherwise the result is None for an eager call on a CPU; elsewhere the host does
    not wait for the values, and the mask is an error of the device (an assertion).

    Raises ValueError if the mask does not have the batch and the sequence of x.
    """
    expected = batch_and_length(x, batch_first)[3 - x.ndim :]
    if tuple(mask.shape) != expected:
        raise ValueError(f"{module}: the key padding mask must have shape {expected}, got {tuple(mask.shape)}")
    mask = mask if mask.ndim == 2 else mask[None]
    lengths, at_the_right = right_padding(mask)
    if mask.device.type == "cpu" and not torch.compiler.is_compiling():
        return lengths if at_the_right else None
    if mask.device.type != "meta":
        message = f"{module}: the key padding mask must have its padding at the right; give other masks as floats"
        torch._assert_async(at_the_right, message)
    return lengths


def right_padding(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the lengths (B,) int32 of a mask (B, S), True at padding, and whether all padding is at the right."""
    return (~mask).sum(-1, dtype=torch.int32), (mask[:, :-1] <= mask[:, 1:]).all()


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


def padding_mask(lengths: Tensor, length: int) -> Tensor:
    """Returns the bool mask (B, length) that is True from each of the lengths (B,) on."""
    return torch.arange(length, device=lengths.device) >= lengths[:, None]


def batch_and_length(x: Tensor, batch_first: bool) -> tuple[int, int]:
    """Returns B and S of x (S, B, E), with batch_first (B, S, E), or (S, E)."""
    if x.ndim == 2:
        return 1, x.shape[0]
    return (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
