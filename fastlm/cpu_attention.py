"""Attention of the CPU's backend, which `fastlm.cpu` offers: forward and backward, in torch's fused calls.

If sequences differ in length or dropout is on, one small group of sequences is processed after another: their scores
stay in a core's cache, and padding is never read. q, k and v are not copied.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fastlm import cpu_dropout
from fastlm.cpu_dropout import as_float
from fastlm.keep import LEVELS

aten = torch.ops.aten

SCORES = 1 << 17  # scores of a group of sequences: 512 KiB, half of a core's L2 cache
MASKED = 1 << 22  # scores whose keep mask is drawn at a time


def wide(x: Tensor) -> Tensor:
    """Returns x as it is if its dtype is float32 or float64, else as float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


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
    """Returns o = dropout(softmax(scale * q k^T + mask)) v (B, S, H, D) and lse (B, H, S); packed (T, H, D) and (T, H).

    Queries outside a sequence's rows get o = 0 and lse = +inf.
    """
    groups = _Groups(q, lengths, starts, cu_seqlens, seed, first_sequence, keep, last_use=False)
    if groups.whole and keep == LEVELS and q.numel():
        o, lse = _flash_forward(*(_heads_first(x) for x in (q, k, v)), causal, scale)
        return o.transpose(1, 2).to(q.dtype), lse.contiguous()
    o = q.new_zeros(q.shape)
    lse = q.new_full(q.shape[:-1], math.inf, dtype=torch.promote_types(q.dtype, torch.float32))
    for rows, mask in groups:
        q_, k_, v_ = (_heads_first(rows(x)) for x in (q, k, v))
        if mask is None:
            o_, lse_ = _flash_forward(q_, k_, v_, causal, scale)
        else:
            o_, lse_ = _dropped_forward(q_, k_, v_, mask, causal, scale, keep)
        rows(o).copy_(o_.transpose(1, 2))
        rows(lse).copy_(lse_.transpose(1, 2))
    return o, lse if cu_seqlens is not None else lse.transpose(1, 2).contiguous()


def self_attention_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, *rest: Tensor | int | float | bool | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dq, dk and dv in the shape of q. `rest`: the arguments of `self_attention_forward` after v."""
    gradients = tuple(q.new_zeros(q.shape) for _ in range(3))
    _attention_gradients(gradients, do, q, k, v, o, lse, *rest)
    return gradients


def packed_attention_backward(
    do: Tensor, qkv: Tensor, o: Tensor, lse: Tensor, *rest: Tensor | int | float | bool | None
) -> Tensor:
    """Returns dqkv of a projection qkv (..., 3, H, D), as `self_attention_backward` does for q, k, v."""
    dqkv = qkv.new_zeros(qkv.shape)
    _attention_gradients(dqkv.unbind(-3), do, *qkv.unbind(-3), o, lse, *rest)
    return dqkv


def _attention_gradients(
    gradients: Sequence[Tensor],
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
) -> None:
    """Writes dq, dk and dv, except the rows outside a sequence."""
    lse = lse if cu_seqlens is not None else lse.transpose(1, 2)
    for rows, mask in _Groups(q, lengths, starts, cu_seqlens, seed, first_sequence, keep, last_use=True):
        do_, q_, k_, v_ = (_heads_first(rows(x)) for x in (do, q, k, v))
        if mask is None:
            o_, lse_ = _heads_first(rows(o)), rows(lse).transpose(1, 2)
            found = aten._scaled_dot_product_flash_attention_for_cpu_backward(
                do_, q_, k_, v_, o_, lse_, 0.0, causal, scale=scale
            )
        else:
            found = _dropped_backward(do_, q_, k_, v_, mask, causal, scale, keep)
        for gradient, g in zip(gradients, found, strict=True):
            rows(gradient).copy_(g.transpose(1, 2))


class _Groups:
    """Iterates over groups of G sequences of one length n that are computed together.

    Each iteration yields two values. The first is a function that returns the group's rows (G, n, ...) of a tensor laid
    out as q, (B, S, ...) or packed (T, ...). The second is the group's keep mask (G * H, n, n), or None without
    dropout. Sequences without rows are left out.
    """

    def __init__(
        self,
        q: Tensor,
        lengths: Tensor | None,
        starts: Tensor | None,
        cu_seqlens: Tensor | None,
        seed: Tensor | None,
        first_sequence: Tensor | None,
        keep: int,
        *,
        last_use: bool,
    ):
        self.heads, self.seed, self.keep, self.last_use = q.shape[-2], seed, keep, last_use
        self.first_sequence = 0 if first_sequence is None else first_sequence.item()
        # Under torch.compile the values are not checked, so those out of range are clamped.
        self.packed = cu_seqlens is not None
        self.starts = None if starts is None else starts.clamp(0, q.shape[1]).tolist()
        if cu_seqlens is not None:
            self.starts = cu_seqlens.clamp(0, q.shape[0]).tolist()
            self.lengths = [max(0, b - a) for a, b in itertools.pairwise(self.starts)]
        elif lengths is not None:
            self.lengths = lengths.clamp(0, q.shape[1]).tolist()
            if self.starts is not None:
                self.lengths = [min(n, q.shape[1] - a) for a, n in zip(self.starts, self.lengths, strict=True)]
        else:
            self.lengths = [q.shape[1]] * q.shape[0]
        self.longest = max(self.lengths, default=0)
        self.whole = not self.packed and all(n == q.shape[1] for n in self.lengths)
        scores = self.heads * self.longest**2
        self.together = 1
        if self.whole:
            self.together = max(1, SCORES // max(1, scores)) if keep < LEVELS else max(1, len(self.lengths))
        self.drawn = max(1, MASKED // max(1, scores) // self.together) * self.together

    def __iter__(self) -> Iterator[tuple[Callable[[Tensor], Tensor], Tensor | None]]:
        batch, kept = len(self.lengths), None
        for first in range(0, batch, self.together):
            n, end = self.lengths[first], min(batch, first + self.together)
            place = first % self.drawn
            if place == 0 and self.keep < LEVELS:
                count = min(self.drawn, batch - first)
                kept = cpu_dropout.attention_mask(
                    self.seed,
                    self.first_sequence + first,
                    count,
                    self.heads,
                    self.longest,
                    self.keep,
                    last_use=self.last_use,
                )
            mask = None if kept is None else as_float(kept[place : place + end - first, :, :n, :n].flatten(0, 1))
            if n:
                yield functools.partial(self._rows, first, end), mask

    def _rows(self, first: int, end: int, x: Tensor) -> Tensor:
        if self.packed:
            return x[None, self.starts[first] : self.starts[end]]
        start = 0 if self.starts is None else self.starts[first]
        return x[first:end, start : start + self.lengths[first]]


def _heads_first(x: Tensor) -> Tensor:
    """Returns x (B, S, H, D) as wide (B, H, S, D)."""
    return wide(x).transpose(1, 2)


def _flash_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Returns o (B, H, S, D) and lse (B, H, S) without dropout."""
    return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)


def _dropped_forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, causal: bool, scale: float, keep: int
) -> tuple[Tensor, Tensor]:
    """Returns o (G, H, n, D) and lse (G, H, n) of q, k, v (G, H, n, D), with dropout by the keep mask."""
    scores = _scores(q, k, causal, scale)
    row_max = scores.amax(-1)
    p = torch.softmax(scores, -1)
    lse = row_max.sub_(p.amax(-1).log_())  # the largest probability of a row is exp(row_max - lse)
    o = _product(p.mul_(mask), v.flatten(0, 1), LEVELS / keep)
    return o.view(q.shape), lse.view(q.shape[:-1])


def _dropped_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, causal: bool, scale: float, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dq, dk and dv (G, H, n, D).

    With the scaled keep mask z: dv = (z p)^T do, dp = z * (do v^T), ds = p * (dp - rowsum(dp * p)).
    """
    shape = q.shape
    p = torch.softmax(_scores(q, k, causal, scale), -1)
    do, q, k, v = (x.flatten(0, 1) for x in (do, q, k, v))
    dv = _product((p * mask).transpose(1, 2), do, LEVELS / keep)
    dp = _product(do, v.transpose(1, 2), LEVELS / keep).mul_(mask)
    ds = aten._softmax_backward_data(dp, p, -1, p.dtype)
    dq, dk = _product(ds, k, scale), _product(ds.transpose(1, 2), q, scale)
    return dq.view(shape), dk.view(shape), dv.view(shape)


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    """Returns the scaled scores (G * H, n, n) of q, k (G, H, n, D); -inf if the query does not see the key."""
    scores = _product(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), scale)
    return scores.add_(_causal_mask(scores.shape[-1], scores.dtype)) if causal else scores


@functools.lru_cache(maxsize=4)
def _causal_mask(n: int, dtype: torch.dtype) -> Tensor:
    """Returns the causal mask to add to scores (n, n): -inf if the key comes after the query, else 0."""
    return torch.full((n, n), -math.inf, dtype=dtype).triu_(1)


def _product(a: Tensor, b: Tensor, factor: float) -> Tensor:
    """Returns factor * a b for a (N, m, k) and b (N, k, n)."""
    return torch.baddbmm(_zero(a.dtype), a, b, beta=0, alpha=factor)


@functools.cache
def _zero(dtype: torch.dtype) -> Tensor:
    return torch.zeros((), dtype=dtype)
