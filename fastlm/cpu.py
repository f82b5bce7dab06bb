"""The CPU's backend: the functions of `fastlm.reference`, by torch's fused calls and in fewer passes over memory.

float32 and float64 are computed in their own precision; half precision is widened first. Results are rounded once. If
sequences differ in length or dropout is on, attention processes one small group of sequences after another: their
scores stay in a core's cache, and padding is never read. q, k and v are not copied.
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


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _as(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return x if x is None or x.dtype == dtype else x.to(dtype)


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    x = _wide(x)
    return x if bias is None else x + _as(bias, x.dtype)


def _drop_rows(x: Tensor, seed: Tensor | None, first_row: Tensor | None, keep: int) -> Tensor:
    """Returns dropout(x), computed in place."""
    if keep == LEVELS:
        return x
    return x.mul_(cpu_dropout.row_mask(seed, *x.shape, keep, first_row, last_use=False)).mul_(LEVELS / keep)


# Layer norm -----------------------------------------------------------------------------------------------------


def _normalise(s: Tensor, gamma: Tensor, beta: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, rstd = torch.native_layer_norm(s, s.shape[-1:], _as(gamma, s.dtype), _as(beta, s.dtype), eps)
    return y, mean.view(-1), rstd.view(-1)


def _normalise_backward(
    dy: Tensor, s: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    gamma = _as(gamma, s.dtype)
    # gamma stands in for beta: its values are not used, but torch returns beta's gradient only if there is a beta.
    return aten.native_layer_norm_backward(
        dy, s, s.shape[-1:], mean[:, None], rstd[:, None], gamma, gamma, [True, True, True]
    )


def layer_norm_forward(x: Tensor, gamma: Tensor, beta: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y = LN(x) (N, E), mean (N,) and rstd (N,)."""
    y, mean, rstd = _normalise(_wide(x), gamma, beta, eps)
    return _as(y, x.dtype), mean, rstd


def layer_norm_backward(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dx (N, E), dgamma (E,) and dbeta (E,)."""
    dx, dgamma, dbeta = _normalise_backward(_wide(dy), _wide(x), mean, rstd, gamma)
    return _as(dx, x.dtype), dgamma, dbeta


def add_layer_norm_forward(
    x: Tensor,
    residual: Tensor,
    bias: Tensor | None,
    gamma: Tensor,
    beta: Tensor | None,
    seed: Tensor | None,
    first_row: Tensor | None,
    keep: int,
    eps: float,
    save_sum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns y = LN(s) with s = residual + dropout(x + bias), s (empty unless `save_sum`), mean and rstd.

    The sum is rounded to the dtype of x before it is normalised (see `fastlm.reference`).
    """
    h = _biased(x, bias)
    if keep == LEVELS:
        s = h.add_(_wide(residual)) if bias is not None else h + _wide(residual)
    else:
        mask = cpu_dropout.row_mask(seed, *x.shape, keep, first_row, last_use=False)
        s = torch.addcmul(_wide(residual), h, mask, value=LEVELS / keep)
    s = _as(s, x.dtype)
    y, mean, rstd = _normalise(_wide(s), gamma, beta, eps)
    return _as(y, x.dtype), s if save_sum else s.new_empty(0), mean, rstd


def add_layer_norm_backward(
    dy: Tensor,
    dsum: Tensor | None,
    s: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    seed: Tensor | None,
    first_row: Tensor | None,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns ds (the gradient of the residual), dx = dropout(ds) (ds itself without dropout), dgamma, dbeta, dbias."""
    ds, dgamma, dbeta = _normalise_backward(_wide(dy), _wide(s), mean, rstd, gamma)
    if dsum is not None:
        ds += _wide(dsum)
    dx = ds
    if keep < LEVELS:
        dx = ds * cpu_dropout.row_mask(seed, *ds.shape, keep, first_row, last_use=True)
        dx.mul_(LEVELS / keep)
    return _as(ds, dy.dtype), _as(dx, dy.dtype), dgamma, dbeta, dx.sum(0)


def add_layer_norm_backward_from_output(
    dy: Tensor,
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    beta: Tensor | None,
    seed: Tensor | None,
    first_row: Tensor | None,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Computes `add_layer_norm_backward`, with s computed from y: s = (y - beta) / gamma / rstd + mean."""
    wide = _wide(y)
    s = (wide if beta is None else wide - _as(beta, wide.dtype)) / _as(gamma, wide.dtype)
    s.div_(rstd[:, None]).add_(mean[:, None])
    return add_layer_norm_backward(dy, None, s, mean, rstd, gamma, seed, first_row, keep)


# GELU -----------------------------------------------------------------------------------------------------------


def bias_gelu_forward(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    """Returns GELU(x + bias), (N, E)."""
    h = _biased(x, bias)
    return aten.gelu(h, approximate=approximate).to(x.dtype)


def bias_gelu_backward(dy: Tensor, x: Tensor, bias: Tensor | None, approximate: str) -> tuple[Tensor, Tensor]:
    """Returns dx (N, E) and dbias (E,)."""
    dx = aten.gelu_backward(_wide(dy), _biased(x, bias), approximate=approximate)
    return _as(dx, x.dtype), dx.sum(0)


def gelu_layer_norm_forward(
    x: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor | None, approximate: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y = LN(GELU(x + bias)), mean and rstd."""
    y, mean, rstd = _normalise(aten.gelu(_biased(x, bias), approximate=approximate), gamma, beta, eps)
    return _as(y, x.dtype), mean, rstd


def gelu_layer_norm_backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, mean: Tensor, rstd: Tensor, gamma: Tensor, approximate: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns dx, dbias, dgamma and dbeta. GELU is recomputed."""
    h = _biased(x, bias)
    da, dgamma, dbeta = _normalise_backward(_wide(dy), aten.gelu(h, approximate=approximate), mean, rstd, gamma)
    dx = aten.gelu_backward(da, h, approximate=approximate)
    return _as(dx, x.dtype), dx.sum(0), dgamma, dbeta


def layer_norm_gelu_forward(
    x: Tensor, gamma: Tensor, beta: Tensor | None, approximate: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y = GELU(LN(x)), mean and rstd."""
    h, mean, rstd = _normalise(_wide(x), gamma, beta, eps)
    return aten.gelu_(h, approximate=approximate).to(x.dtype), mean, rstd


def layer_norm_gelu_backward(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor, beta: Tensor | None, approximate: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dx, dgamma and dbeta. The normalised row is recomputed from the statistics."""
    s = _wide(x)
    h = (s - mean[:, None]).mul_(rstd[:, None]).mul_(_as(gamma, s.dtype))
    h = h if beta is None else h.add_(_as(beta, s.dtype))
    dh = aten.gelu_backward(_wide(dy), h, approximate=approximate)
    dx, dgamma, dbeta = _normalise_backward(dh, s, mean, rstd, gamma)
    return _as(dx, x.dtype), dgamma, dbeta


# Embedding ------------------------------------------------------------------------------------------------------


def embedding_layer_norm_forward(
    tokens: Tensor,
    word: Tensor,
    position: Tensor | None,
    position_ids: Tensor | None,
    segment: Tensor | None,
    segments: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    seed: Tensor | None,
    first_row: Tensor | None,
    sequence: int,
    keep: int,
    eps: float,
    dtype: torch.dtype,
    save_sum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns y = dropout(LN(s)) (N, E) with s = We[tokens] + Wp[position_ids] + Ws[segments], s, mean and rstd.

    All ids are (N,). Without position_ids, row n has position n % sequence. s is empty unless `save_sum`. Without gamma
    there is no layer norm, and s, mean and rstd are empty.
    """
    s = _wide(word.index_select(0, tokens))
    if position is not None and position_ids is None:
        rows = (-1, max(sequence, 1), s.shape[1])
        s.view(rows).add_(position[:sequence].to(s.dtype) if sequence else 0.0)
    elif position is not None:
        s += position.index_select(0, position_ids)
    if segment is not None:
        s += segment.index_select(0, segments)
    if gamma is None:
        y = _drop_rows(s, seed, first_row, keep).to(dtype)
        return y, y.new_empty(0), s.new_empty(0), s.new_empty(0)
    s = _as(s, dtype)  # rounded before it is normalised, as in add_layer_norm
    y, mean, rstd = _normalise(_wide(s), gamma, beta, eps)
    return _drop_rows(y, seed, first_row, keep).to(dtype), s if save_sum else s.new_empty(0), mean, rstd


def embedding_layer_norm_backward(
    dy: Tensor,
    s: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor | None,
    seed: Tensor | None,
    first_row: Tensor | None,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ds (N, E), wide, and dgamma and dbeta, which are empty without layer norm."""
    dy = _wide(dy)
    if keep < LEVELS:
        dy = (dy * cpu_dropout.row_mask(seed, *dy.shape, keep, first_row, last_use=True)).mul_(LEVELS / keep)
    if gamma is None:
        return dy, dy.new_empty(0), dy.new_empty(0)
    return _normalise_backward(dy, _wide(s), mean, rstd, gamma)


def embedding_gradient(ds: Tensor, ids: Tensor, rows: int) -> Tensor:
    """Returns the gradient of a table (rows, E), wide: row r is the sum of the rows of ds whose id is r."""
    return aten.embedding_dense_backward(_wide(ds), ids, rows, -1, False)


# Attention ------------------------------------------------------------------------------------------------------


def self_attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int,
    seed: Tensor | None,
    first_sequence: Tensor | None,
    causal: bool,
    scale: float,
    keep: int,
) -> tuple[Tensor, Tensor]:
    """Returns o = dropout(softmax(scale * q k^T + mask)) v (B, S, H, D) and lse (B, H, S); packed (T, H, D) and (T, H).

    Queries past a sequence's length get o = 0 and lse = +inf.
    """
    groups = _Groups(q, lengths, cu_seqlens, seed, first_sequence, keep, last_use=False)
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
    cu_seqlens: Tensor | None,
    max_seqlen: int,
    seed: Tensor | None,
    first_sequence: Tensor | None,
    causal: bool,
    scale: float,
    keep: int,
) -> None:
    """Writes dq, dk and dv, except the rows past a sequence's length."""
    lse = lse if cu_seqlens is not None else lse.transpose(1, 2)
    for rows, mask in _Groups(q, lengths, cu_seqlens, seed, first_sequence, keep, last_use=True):
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
        self.starts = None if cu_seqlens is None else cu_seqlens.clamp(0, q.shape[0]).tolist()
        if self.starts is not None:
            self.lengths = [max(0, b - a) for a, b in itertools.pairwise(self.starts)]
        elif lengths is not None:
            self.lengths = lengths.clamp(0, q.shape[1]).tolist()
        else:
            self.lengths = [q.shape[1]] * q.shape[0]
        self.longest = max(self.lengths, default=0)
        self.whole = self.starts is None and all(n == q.shape[1] for n in self.lengths)
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
        if self.starts is None:
            return x[first:end, : self.lengths[first]]
        return x[None, self.starts[first] : self.starts[end]]


def _heads_first(x: Tensor) -> Tensor:
    """Returns x (B, S, H, D) as wide (B, H, S, D)."""
    return _wide(x).transpose(1, 2)


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


# Softmax cross-entropy ------------------------------------------------------------------------------------------


def cross_entropy_rows(
    logits: Tensor,
    targets: Tensor,
    row_weights: Tensor | None,
    losses: Tensor,
    lse: Tensor,
    vocabulary: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    need_gradient: bool,
) -> None:
    """Writes losses (n,) and lse (n,) of logits (n, V). With `need_gradient`, dlogits replace the logits.

    The formulas are those of `fastlm.reference`. The softmax is one pass, in place.
    """
    counted = targets != ignore_index
    all_count = bool(counted.all())
    target = (targets if all_count else targets.where(counted, 0))[:, None]
    x = _wide(logits)
    row_max = x.amax(-1)
    x_target = x.gather(1, target)[:, 0] - row_max
    mean = x.mean(-1) - row_max if label_smoothing else 0.0
    p = torch.softmax(x, -1, out=x)
    log_row_sum = p.amax(-1).log_().neg_()  # the largest probability of a row is exp(row_max - lse)
    row_lse = row_max + log_row_sum
    loss = log_row_sum - (1 - label_smoothing) * x_target - label_smoothing * mean + z_loss * row_lse.square()
    if row_weights is not None:
        loss *= row_weights
    losses[:], lse[:] = (loss, row_lse) if all_count else (r.where(counted, 0.0) for r in (loss, row_lse))
    if not need_gradient:
        return
    if z_loss:
        p *= (1 + 2 * z_loss * row_lse)[:, None]
    if label_smoothing:
        p -= label_smoothing / vocabulary
    p.scatter_add_(1, target, p.new_full(target.shape, label_smoothing - 1))
    if row_weights is not None:
        p *= row_weights[:, None]
    if not all_count:
        p.masked_fill_(~counted[:, None], 0.0)
    if p is not logits:
        logits.copy_(p)


# AdamW ----------------------------------------------------------------------------------------------------------


def gradient_squares(gradients: Sequence[Tensor]) -> Tensor:
    """Returns the square of each gradient's norm, (n,)."""
    wide = torch.promote_types(gradients[0].dtype, torch.float32)
    return torch.stack(torch._foreach_norm(list(gradients), 2, dtype=wide)).square_()


def adamw(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    rates: Tensor,
    decays: Tensor,
    betas: tuple[float, float],
    eps: float,
    corrections: Tensor | None,
    squares: Tensor,
    max_norm: Tensor | None,
    scale: Tensor | None,
) -> Tensor:
    """Updates in place, as `fastlm.ops.adamw` defines it. Returns the norm of the scaled gradients, before clipping."""
    norm, factor = squares.sum().sqrt(), 1.0
    if scale is not None:
        norm, factor = norm * scale, scale
    if max_norm is not None:
        factor = factor * torch.where(norm <= max_norm, 1.0, max_norm / norm)
    p, m, v = [_wide(p) for p in parameters], list(first_moments), list(second_moments)
    g = torch._foreach_mul([_wide(g) for g in gradients], torch.as_tensor(factor))
    c1, c2 = ([1.0] * len(p),) * 2 if corrections is None else corrections.t().tolist()
    torch._foreach_lerp_(m, g, 1 - betas[0])
    torch._foreach_mul_(v, betas[1])
    torch._foreach_addcmul_(v, g, g, 1 - betas[1])
    denominators = torch._foreach_div(v, c2)
    torch._foreach_sqrt_(denominators)
    torch._foreach_add_(denominators, eps)
    torch._foreach_mul_(p, (1 - rates * decays).tolist())
    torch._foreach_addcdiv_(p, m, denominators, [-rate / c for rate, c in zip(rates.tolist(), c1, strict=True)])
    torch._foreach_copy_(list(parameters), p)
    return norm
