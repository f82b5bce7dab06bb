"""Attention in plain PyTorch, which `fastlm.reference` offers: the specification of the op (Vaswani et al. 2017, 3.2).

Shapes: B batch, S sequence, H heads, D head_dim; T packed rows. keep = 256 means no dropout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlm.dropout import LEVELS, attention_mask


def wide(x: Tensor) -> Tensor:
    """Returns x as float32, or as it is if it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    seed: Tensor | None,
    first_sequence: Tensor | None,
    causal: bool,
    scale: float,
    keep: int,
) -> tuple[Tensor, Tensor]:
    """Returns o = dropout(softmax(scale * q k^T + mask)) v (B, S, H, D) and lse (B, H, S).

    Keys at or past a sequence's length are ignored, even if they are NaN. Queries there give o = 0 and lse = +inf, so
    that exp(score - lse) is 0 in the backward too.
    """
    q_, k_, v_ = _heads_first(lengths, q, k, v)
    scores, allowed = _scores(q_, k_, lengths, causal, scale)
    lse = torch.logsumexp(scores.masked_fill(~allowed, -torch.inf), dim=-1)
    lse = torch.where(lse == -torch.inf, torch.inf, lse)
    p = torch.exp(scores - lse[..., None]).masked_fill(~allowed, 0.0)
    o = _drop_scores(p, _score_mask(p, seed, first_sequence, keep), keep) @ v_
    return o.transpose(1, 2).to(q.dtype).contiguous(), lse


def attention_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    lengths: Tensor | None,
    seed: Tensor | None,
    first_sequence: Tensor | None,
    causal: bool,
    scale: float,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dq, dk and dv.

    With the keep mask z, scaled by 256 / keep, and delta = rowsum(do * o): dv = (z p)^T do,
    ds = p * (z * (do v^T) - delta), dq = scale * ds k, dk = scale * ds^T q.
    """
    q_, k_, v_, o_, do_ = _heads_first(lengths, q, k, v, o, do)
    scores, allowed = _scores(q_, k_, lengths, causal, scale)
    p = torch.exp(scores - lse[..., None]).masked_fill(~allowed, 0.0)
    mask = _score_mask(p, seed, first_sequence, keep)
    dv = _drop_scores(p, mask, keep).transpose(-1, -2) @ do_
    dp = _drop_scores(do_ @ v_.transpose(-1, -2), mask, keep)
    delta = (do_ * o_).sum(-1, keepdim=True)
    ds = p * (dp - delta) * scale
    gradients = (ds @ k_, ds.transpose(-1, -2) @ q_, dv)
    return tuple(g.transpose(1, 2).to(q.dtype).contiguous() for g in gradients)


def _heads_first(lengths: Tensor | None, *tensors: Tensor) -> list[Tensor]:
    """Returns each (B, S, H, D) as wide (B, H, S, D), with zeros past a sequence's length.

    Without the zeros, a NaN in the padding would reach the results: 0 * NaN is NaN.
    """
    if lengths is None:
        return [wide(x).transpose(1, 2) for x in tensors]
    past = _position_indices(tensors[0], 1) >= lengths[:, None]
    return [wide(x).masked_fill(past[:, :, None, None], 0.0).transpose(1, 2) for x in tensors]


def _position_indices(x: Tensor, dim: int) -> Tensor:
    return torch.arange(x.shape[dim], device=x.device)


def _scores(q: Tensor, k: Tensor, lengths: Tensor | None, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Returns the scaled scores (B, H, S, S) of q, k (B, H, S, D), and the mask of allowed pairs, which broadcasts."""
    scores = (q * scale) @ k.transpose(-1, -2)
    position = _position_indices(q, 2)
    allowed = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=q.device)
    if causal:
        allowed = allowed & (position[None, :] <= position[:, None])
    if lengths is not None:
        valid = position < lengths[:, None]
        allowed = allowed & valid[:, None, None, :] & valid[:, None, :, None]
    return scores, allowed


def _score_mask(p: Tensor, seed: Tensor | None, first_sequence: Tensor | None, keep: int) -> Tensor | None:
    return None if keep == LEVELS else attention_mask(seed, *p.shape, keep, first_sequence)


def _drop_scores(p: Tensor, mask: Tensor | None, keep: int) -> Tensor:
    return p if mask is None else p * mask * (LEVELS / keep)


def pad(rows: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
    """Pads packed rows (T, ...) to (B, longest, ...). The padding is filled with arbitrary rows of the batch."""
    start = cu_seqlens[:-1, None].long()
    index = start + torch.arange(longest, device=rows.device)
    if rows.shape[0] == 0:
        return rows.new_zeros(*index.shape, *rows.shape[1:])
    return rows[index.clamp(max=rows.shape[0] - 1)]


def unpad(padded: Tensor, cu_seqlens: Tensor, rows: int) -> Tensor:
    """Takes the packed rows (rows, ...) out of padded ones (B, longest, ...)."""
    row = torch.arange(rows, device=padded.device)
    sequence = torch.bucketize(row, cu_seqlens[1:], right=True)
    return padded[sequence, row - cu_seqlens[sequence]].contiguous()


def roll(x: Tensor, shift: Tensor) -> Tensor:
    """Returns x (B, S, ...) with row i of sequence b taken from row (i + shift[b]) mod S."""
    batch, rows = x.shape[:2]
    row = (torch.arange(rows, device=x.device) + shift[:, None]) % max(1, rows)
    return x[torch.arange(batch, device=x.device)[:, None], row]


def self_attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    starts: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int,
    seed: Tensor | None,
    first_sequence: Tensor | None,
    causal: bool,
    scale: float,
    keep: int,
) -> tuple[Tensor, Tensor]:
    """Computes `attention_forward`. With cu_seqlens the rows are packed: q and o (T, H, D), lse (T, H).

    With starts (B,), sequence b has rows starts[b] to starts[b] + lengths[b] - 1 of its S rows.
    """
    if starts is not None:
        q, k, v = (roll(x, starts) for x in (q, k, v))
        lengths = torch.minimum(lengths, q.shape[1] - starts)
        o, lse = attention_forward(q, k, v, lengths, seed, first_sequence, causal, scale, keep)
        return roll(o, -starts), roll(lse.transpose(1, 2), -starts).transpose(1, 2).contiguous()
    if cu_seqlens is None:
        return attention_forward(q, k, v, lengths, seed, first_sequence, causal, scale, keep)
    rows = q.shape[0]
    q, k, v = (pad(x, cu_seqlens, max_seqlen) for x in (q, k, v))
    o, lse = attention_forward(q, k, v, cu_seqlens.diff(), seed, first_sequence, causal, scale, keep)
    return unpad(o, cu_seqlens, rows), unpad(lse.transpose(1, 2), cu_seqlens, rows)


def self_attention_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    lengths: Tensor | None,
    starts: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int,
    seed: Tensor | None,
    first_sequence: Tensor | None,
    causal: bool,
    scale: float,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes `attention_backward`. With cu_seqlens the rows are packed: dq, dk, dv (T, H, D).

    With starts, the rows are those of `self_attention_forward`.
    """
    if starts is not None:
        do, q, k, v, o, lse = (roll(x, starts) for x in (do, q, k, v, o, lse.transpose(1, 2)))
        lengths, lse = torch.minimum(lengths, q.shape[1] - starts), lse.transpose(1, 2)
        gradients = attention_backward(do, q, k, v, o, lse, lengths, seed, first_sequence, causal, scale, keep)
        return tuple(roll(x, -starts) for x in gradients)
    if cu_seqlens is None:
        return attention_backward(do, q, k, v, o, lse, lengths, seed, first_sequence, causal, scale, keep)
    rows = q.shape[0]
    do, q, k, v, o, lse = (pad(x, cu_seqlens, max_seqlen) for x in (do, q, k, v, o, lse))
    lengths, lse = cu_seqlens.diff(), lse.transpose(1, 2)
    gradients = attention_backward(do, q, k, v, o, lse, lengths, seed, first_sequence, causal, scale, keep)
    return tuple(unpad(x, cu_seqlens, rows) for x in gradients)


def packed_attention_backward(do: Tensor, qkv: Tensor, *rest: Tensor | int | float | bool | None) -> Tensor:
    """Returns dqkv of a projection qkv (..., 3, H, D), as `self_attention_backward` does for q, k, v."""
    return torch.stack(self_attention_backward(do, *qkv.unbind(-3), *rest), dim=-3)
