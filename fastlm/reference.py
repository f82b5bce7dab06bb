"""Every op in plain PyTorch: the specification that all other backends are tested against, on any device.

An op is a pair of functions `<op>_forward` and `<op>_backward`, which return new tensors. "Wide" means float32, or
float64 for float64 inputs. All arithmetic is wide. Results are rounded once to the dtype of the activations; statistics
and gradients of parameters stay wide. Shapes: N rows of E columns; B batch, S sequence, H heads, D head_dim; V
vocabulary. keep = 256 means no dropout. The functions of attention are imported, so that those of all ops are found
here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlm.dropout import LEVELS, row_mask
from fastlm.reference_attention import (  # noqa: F401
    packed_attention_backward,
    self_attention_backward,
    self_attention_forward,
)
from fastlm.reference_attention import wide as _wide


def _cast_like(x: Tensor | None, other: Tensor) -> Tensor | None:
    return None if x is None else x.to(other.dtype)


def _add_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    return _wide(x) if bias is None else _wide(x) + _wide(bias)


def _drop_rows(x: Tensor, seed: Tensor | None, first_row: Tensor | None, keep: int) -> Tensor:
    if keep == LEVELS:
        return x
    return x * row_mask(seed, *x.shape, keep, first_row) * (LEVELS / keep)


def _layer_norm(s: Tensor, gamma: Tensor, beta: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, rstd = torch.native_layer_norm(s, s.shape[-1:], _cast_like(gamma, s), _cast_like(beta, s), eps)
    return y, mean.view(s.shape[:-1]), rstd.view(s.shape[:-1])


def _layer_norm_backward(
    dy: Tensor, s: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ds, dgamma, dbeta of y = LN(s).

    With xhat = (s - mean) * rstd and g = dy * gamma: ds = rstd * (g - mean(g) - xhat * mean(g * xhat)).
    """
    gamma = gamma.to(s.dtype)
    arguments = (dy, s, s.shape[-1:], mean[:, None], rstd[:, None], gamma, torch.zeros_like(gamma))
    return torch.ops.aten.native_layer_norm_backward(*arguments, [True, True, True])


# Layer norm (Ba et al. 2016) -----------------------------------------------------------------------------------


def layer_norm_forward(x: Tensor, gamma: Tensor, beta: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y = LN(x) (N, E), mean (N,) and rstd (N,)."""
    y, mean, rstd = _layer_norm(_wide(x), gamma, beta, eps)
    return y.to(x.dtype), mean, rstd


def layer_norm_backward(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dx (N, E), dgamma (E,) and dbeta (E,)."""
    dx, dgamma, dbeta = _layer_norm_backward(_wide(dy), _wide(x), mean, rstd, gamma)
    return dx.to(x.dtype), dgamma, dbeta


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

    s is rounded to the dtype of x before it is normalised, so that the statistics belong to the rounded s, the only one
    that the backward sees. Otherwise rstd would multiply the rounding error of s; rstd reaches 10^6 in rows of little
    variance, at BERT's eps.
    """
    s = (_wide(residual) + _drop_rows(_add_bias(x, bias), seed, first_row, keep)).to(x.dtype)
    y, mean, rstd = _layer_norm(_wide(s), gamma, beta, eps)
    return y.to(x.dtype), s if save_sum else s.new_empty(0), mean, rstd


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
    ds, dgamma, dbeta = _layer_norm_backward(_wide(dy), _wide(s), mean, rstd, gamma)
    if dsum is not None:
        ds = ds + _wide(dsum)
    dx = _drop_rows(ds, seed, first_row, keep)
    return ds.to(s.dtype), dx.to(s.dtype), dgamma, dbeta, dx.sum(0)


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
    xhat = (_wide(y) if beta is None else _wide(y) - _wide(beta)) / _wide(gamma)
    s = xhat / rstd[:, None] + mean[:, None]
    ds, dx, *parameters = add_layer_norm_backward(dy, None, s, mean, rstd, gamma, seed, first_row, keep)
    return ds.to(dy.dtype), dx.to(dy.dtype), *parameters


# GELU (Hendrycks & Gimpel 2016): "tanh" is both papers' code, "none" the exact erf form --------------------------


def bias_gelu_forward(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    """Returns GELU(x + bias), (N, E)."""
    return F.gelu(_add_bias(x, bias), approximate=approximate).to(x.dtype)


def bias_gelu_backward(dy: Tensor, x: Tensor, bias: Tensor | None, approximate: str) -> tuple[Tensor, Tensor]:
    """Returns dx (N, E) and dbias (E,)."""
    dx = torch.ops.aten.gelu_backward(_wide(dy), _add_bias(x, bias), approximate=approximate)
    return dx.to(x.dtype), dx.sum(0)


def gelu_layer_norm_forward(
    x: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor | None, approximate: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y = LN(GELU(x + bias)), the transform of BERT's masked-LM head, mean and rstd."""
    y, mean, rstd = _layer_norm(F.gelu(_add_bias(x, bias), approximate=approximate), gamma, beta, eps)
    return y.to(x.dtype), mean, rstd


def gelu_layer_norm_backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, mean: Tensor, rstd: Tensor, gamma: Tensor, approximate: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns dx, dbias, dgamma and dbeta. GELU is recomputed."""
    h = _add_bias(x, bias)
    da, dgamma, dbeta = _layer_norm_backward(_wide(dy), F.gelu(h, approximate=approximate), mean, rstd, gamma)
    dx = torch.ops.aten.gelu_backward(da, h, approximate=approximate)
    return dx.to(x.dtype), dx.sum(0), dgamma, dbeta


def layer_norm_gelu_forward(
    x: Tensor, gamma: Tensor, beta: Tensor | None, approximate: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y = GELU(LN(x)), mean and rstd."""
    h, mean, rstd = _layer_norm(_wide(x), gamma, beta, eps)
    return F.gelu(h, approximate=approximate).to(x.dtype), mean, rstd


def layer_norm_gelu_backward(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor, beta: Tensor | None, approximate: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dx, dgamma and dbeta. The normalised row is recomputed from the statistics."""
    s = _wide(x)
    h = (s - mean[:, None]) * rstd[:, None] * gamma.to(s.dtype)
    h = h if beta is None else h + beta.to(s.dtype)
    dh = torch.ops.aten.gelu_backward(_wide(dy), h, approximate=approximate)
    dx, dgamma, dbeta = _layer_norm_backward(dh, s, mean, rstd, gamma)
    return dx.to(x.dtype), dgamma, dbeta


# Embedding sum, layer norm, dropout (BERT section 3, GPT-1 equation 2) -------------------------------------------


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

    All ids are (N,). Without position_ids, row n has position n % sequence. s is empty unless `save_sum`.
    Without gamma there is no layer norm, and s, mean and rstd are empty.
    """
    s = _wide(word[tokens])
    if position is not None:
        if position_ids is None:
            position_ids = torch.arange(tokens.shape[0], device=tokens.device) % max(sequence, 1)
        s = s + _wide(position[position_ids])
    if segment is not None:
        s = s + _wide(segment[segments])
    if gamma is None:
        y = _drop_rows(s, seed, first_row, keep).to(dtype)
        return y, y.new_empty(0), s.new_empty(0), s.new_empty(0)
    s = s.to(dtype)  # rounded before it is normalised, as in add_layer_norm
    y, mean, rstd = _layer_norm(_wide(s), gamma, beta, eps)
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
    dy = _drop_rows(_wide(dy), seed, first_row, keep)
    if gamma is None:
        return dy, dy.new_empty(0), dy.new_empty(0)
    return _layer_norm_backward(dy, _wide(s), mean, rstd, gamma)


def embedding_gradient(ds: Tensor, ids: Tensor, rows: int) -> Tensor:
    """Returns the gradient of a table (rows, E), wide: row r is the sum of the rows of ds whose id is r."""
    return torch.ops.aten.embedding_dense_backward(_wide(ds), ids, rows, -1, False)


# Softmax cross-entropy -------------------------------------------------------------------------------------------


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
    """Writes losses (n,) and lse (n,) of logits (n, PADDED), and dlogits, which may be the logits, or None.

    loss = w * ((1 - e) * (lse - x_t) + e * (lse - mean(x)) + z * lse^2)
    dlogits = w * (softmax * (1 + 2 * z * lse) - (1 - e) * onehot - e / V)

    Columns from `vocabulary` on are padding: they are not read and not written. A row whose target is `ignore_index`
    has loss, lse and gradient 0, even if its weight or its logits are NaN.
    """
    logits = logits[:, :vocabulary]
    x = _wide(logits)
    counted = targets != ignore_index
    weight = counted.to(x.dtype) if row_weights is None else row_weights.to(x.dtype).where(counted, 0.0)
    target = targets.where(counted, 0)[:, None]
    # All terms are relative to row_max. For a logit of 30, lse itself has a rounding error of 10^-6, which every
    # probability computed from lse would have too.
    row_max = x.amax(-1, keepdim=True)
    x = x - row_max
    p = torch.exp(x)
    row_sum = p.sum(-1, keepdim=True)
    log_row_sum = row_sum.log()[:, 0]
    row_lse = row_max[:, 0] + log_row_sum
    loss = log_row_sum - (1 - label_smoothing) * x.gather(1, target)[:, 0] - label_smoothing * x.mean(-1)
    loss = weight * (loss + z_loss * row_lse.square())
    if dlogits is not None:
        gradient = p / row_sum * (1 + 2 * z_loss * row_lse[:, None])
        gradient -= label_smoothing / x.shape[1]
        gradient.scatter_add_(1, target, gradient.new_full(target.shape, label_smoothing - 1))
        dlogits[:, :vocabulary].copy_(gradient * weight[:, None]).masked_fill_(~counted[:, None], 0.0)
    losses[:], lse[:] = loss.where(counted, 0.0), row_lse.where(counted, 0.0)


# AdamW (Loshchilov and Hutter 2019) with clipping by the global norm ----------------------------------------------


def gradient_squares(gradients: Sequence[Tensor]) -> Tensor:
    """Returns the square of each gradient's norm, (n,). Their sum is the square of the global norm."""
    return torch.stack([torch.linalg.vector_norm(_wide(g)) for g in gradients]).square()


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
    norm, factor = squares.sum().sqrt(), None
    if scale is not None:
        norm, factor = norm * scale, scale
    if max_norm is not None:
        clipping = torch.where(norm <= max_norm, 1.0, max_norm / norm)
        factor = clipping if factor is None else factor * clipping
    tensors = zip(parameters, gradients, first_moments, second_moments, strict=True)
    for i, (p, g, m, v) in enumerate(tensors):
        c1, c2 = (1.0, 1.0) if corrections is None else corrections[i]
        scaled = _wide(g) if factor is None else _wide(g) * factor
        m.lerp_(scaled, 1 - betas[0])
        v.mul_(betas[1]).addcmul_(scaled, scaled, value=1 - betas[1])
        denominator = (v / c2).sqrt_().add_(eps)
        p.copy_(_wide(p) * (1 - rates[i] * decays[i]) - (rates[i] / c1) * m / denominator)
    return norm
