"""The CPU's backend: the functions of `fastlm.reference`, by torch's fused calls and in fewer passes over memory.

float32 and float64 are computed in their own precision; half precision is widened first. Results are rounded once.
The functions of attention are imported, so that those of all ops are found here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlm import cpu_dropout
from fastlm.cpu_attention import packed_attention_backward, self_attention_backward, self_attention_forward, wide  # noqa: F401
from fastlm.keep import LEVELS

aten = torch.ops.aten


def _as(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return x if x is None or x.dtype == dtype else x.to(dtype)


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    x = wide(x)
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
    y, mean, rstd = _normalise(wide(x), gamma, beta, eps)
    return _as(y, x.dtype), mean, rstd


def layer_norm_backward(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dx (N, E), dgamma (E,) and dbeta (E,)."""
    dx, dgamma, dbeta = _normalise_backward(wide(dy), wide(x), mean, rstd, gamma)
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
        s = h.add_(wide(residual)) if bias is not None else h + wide(residual)
    else:
        mask = cpu_dropout.row_mask(seed, *x.shape, keep, first_row, last_use=False)
        s = torch.addcmul(wide(residual), h, mask, value=LEVELS / keep)
    s = _as(s, x.dtype)
    y, mean, rstd = _normalise(wide(s), gamma, beta, eps)
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
    ds, dgamma, dbeta = _normalise_backward(wide(dy), wide(s), mean, rstd, gamma)
    if dsum is not None:
        ds += wide(dsum)
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
    s = wide(y)
    s = (s if beta is None else s - _as(beta, s.dtype)) / _as(gamma, s.dtype)
    s.div_(rstd[:, None]).add_(mean[:, None])
    return add_layer_norm_backward(dy, None, s, mean, rstd, gamma, seed, first_row, keep)


# GELU -----------------------------------------------------------------------------------------------------------


def bias_gelu_forward(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    """Returns GELU(x + bias), (N, E)."""
    h = _biased(x, bias)
    return aten.gelu(h, approximate=approximate).to(x.dtype)


def bias_gelu_backward(dy: Tensor, x: Tensor, bias: Tensor | None, approximate: str) -> tuple[Tensor, Tensor]:
    """Returns dx (N, E) and dbias (E,)."""
    dx = aten.gelu_backward(wide(dy), _biased(x, bias), approximate=approximate)
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
    da, dgamma, dbeta = _normalise_backward(wide(dy), aten.gelu(h, approximate=approximate), mean, rstd, gamma)
    dx = aten.gelu_backward(da, h, approximate=approximate)
    return _as(dx, x.dtype), dx.sum(0), dgamma, dbeta


def layer_norm_gelu_forward(
    x: Tensor, gamma: Tensor, beta: Tensor | None, approximate: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y = GELU(LN(x)), mean and rstd."""
    h, mean, rstd = _normalise(wide(x), gamma, beta, eps)
    return aten.gelu_(h, approximate=approximate).to(x.dtype), mean, rstd


def layer_norm_gelu_backward(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor, beta: Tensor | None, approximate: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dx, dgamma and dbeta. The normalised row is recomputed from the statistics."""
    s = wide(x)
    h = (s - mean[:, None]).mul_(rstd[:, None]).mul_(_as(gamma, s.dtype))
    h = h if beta is None else h.add_(_as(beta, s.dtype))
    dh = aten.gelu_backward(wide(dy), h, approximate=approximate)
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
    s = wide(word.index_select(0, tokens))
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
    y, mean, rstd = _normalise(wide(s), gamma, beta, eps)
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
    dy = wide(dy)
    if keep < LEVELS:
        dy = (dy * cpu_dropout.row_mask(seed, *dy.shape, keep, first_row, last_use=True)).mul_(LEVELS / keep)
    if gamma is None:
        return dy, dy.new_empty(0), dy.new_empty(0)
    return _normalise_backward(dy, wide(s), mean, rstd, gamma)


def embedding_gradient(ds: Tensor, ids: Tensor, rows: int) -> Tensor:
    """Returns the gradient of a table (rows, E), wide: row r is the sum of the rows of ds whose id is r."""
    return aten.embedding_dense_backward(wide(ds), ids, rows, -1, False)


# Softmax cross-entropy ------------------------------------------------------------------------------------------


def cross_entropy_rows(
    logits: Tensor,
    dlogits: Tensor | None,
    targets: Tensor,
    row_weights: Tensor | None,
    losses: Tensor,
    lse: Tensor,
    vocabulary: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> None:
    """Writes losses (n,) and lse (n,) of logits (n, V), and dlogits, which may be the logits, or None.

    The formulas are those of `fastlm.reference`. The log-softmax, or with dlogits the softmax, is one pass; the latter
    is in place if dlogits are.
    """
    counted = targets != ignore_index
    all_count = bool(counted.all())
    target = (targets if all_count else targets.where(counted, 0))[:, None]
    x = wide(logits)
    if dlogits is None:
        log_p = torch.log_softmax(x, -1)
        log_p_target = log_p.gather(1, target)[:, 0]
        loss = -(1 - label_smoothing) * log_p_target
        loss -= label_smoothing * log_p.mean(-1) if label_smoothing else 0.0
        row_lse = x.gather(1, target)[:, 0] - log_p_target
    else:
        row_max = x.amax(-1)
        x_target = x.gather(1, target)[:, 0] - row_max
        mean = x.mean(-1) - row_max if label_smoothing else 0.0
        p = torch.softmax(x, -1, out=dlogits if x is logits else x)
        log_row_sum = p.amax(-1).log_().neg_()  # the largest probability of a row is exp(row_max - lse)
        row_lse = row_max + log_row_sum
        loss = log_row_sum - (1 - label_smoothing) * x_target - label_smoothing * mean
    loss += z_loss * row_lse.square()
    if row_weights is not None:
        loss *= row_weights
    losses[:], lse[:] = (loss, row_lse) if all_count else (r.where(counted, 0.0) for r in (loss, row_lse))
    if dlogits is None:
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
    if p is not dlogits:
        dlogits.copy_(p)


# AdamW ----------------------------------------------------------------------------------------------------------


def gradient_squares(gradients: Sequence[Tensor]) -> Tensor:
    """Returns the square of each gradient's norm, (n,)."""
    dtype = torch.promote_types(gradients[0].dtype, torch.float32)
    return torch.stack(torch._foreach_norm(list(gradients), 2, dtype=dtype)).square_()


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
    p, m, v = [wide(p) for p in parameters], list(first_moments), list(second_moments)
    g = torch._foreach_mul([wide(g) for g in gradients], torch.as_tensor(factor))
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
