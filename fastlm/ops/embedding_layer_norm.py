"""The input representation: dropout(LN(We[tokens] + Wp[positions] + Ws[segments])), each part optional."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlm import backends, reference
from fastlm.dropout import keep_count
from fastlm.ops import _checks
from fastlm.ops._register import autocast_dtype, define, statistics, wide_dtype

OP = "embedding_layer_norm"


def embedding_layer_norm(
    tokens: Tensor,
    word: Tensor,
    *,
    position: Tensor | None = None,
    position_ids: Tensor | None = None,
    segment: Tensor | None = None,
    segments: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """dropout(LN(word[tokens] + position[position_ids] + segment[segments])) (BERT section 3; GPT-1 equation 2).

    Args:
        tokens: (..., S) int64.
        word: (V, E) float32, float16, bfloat16 or float64; the other tables and gamma, beta share its dtype or
            are float32.
        position: (C, E), added at `position_ids` (int64, the shape of tokens), by default 0 ... S - 1.
        segment: (T, E), added at `segments` (int64, the shape of tokens).
        gamma, beta: (E,) of the layer norm; without gamma there is none (GPT-1).
        dropout_p, seed: as in `add_layer_norm`.
        backend: "auto", "reference", "triton" or "cuda".

    Returns:
        (..., S, E) in the dtype of `word`, or autocast's.

    Raises:
        TypeError, ValueError: an argument's dtype, shape, device or range is wrong. Ids out of range are found
            on the CPU; on a GPU, where looking would make the host wait, they are the device's error.
        RuntimeError: the backend asked for cannot serve the call.
    """
    keep = keep_count(dropout_p)
    dtype = autocast_dtype(word)
    _check_tables(word, position, segment, gamma, beta)
    _checks.integers(OP, "tokens", tokens, word, tokens.shape, torch.int64)
    _checks.in_range(OP, "tokens", tokens, 0, word.shape[0])
    position_ids = _position_ids(tokens, position, position_ids)
    _checks.together(OP, "segment", segment, "segments", segments)
    _checks.integers(OP, "segments", segments, word, tokens.shape, torch.int64)
    if segment is not None:
        _checks.in_range(OP, "segments", segments, 0, segment.shape[0])
    _checks.epsilon(OP, eps)
    seed = _checks.seed(OP, seed, keep, word)
    backend = backends.resolve(OP, backend, dtype, word.device.type)
    return torch.ops.fastlm.embedding_layer_norm(
        tokens, word, position, position_ids, segment, segments, gamma, beta, seed, keep, eps, dtype, backend
    )[0]


def _check_tables(
    word: Tensor, position: Tensor | None, segment: Tensor | None, gamma: Tensor | None, beta: Tensor | None
) -> None:
    _checks.activation(OP, "word", word)
    if word.ndim != 2:
        raise ValueError(f"{OP}: word must have shape (V, E), got {tuple(word.shape)}")
    for name, table in (("position", position), ("segment", segment)):
        if table is not None:
            _checks.parameter(OP, name, table, word, table.shape[0], word.shape[1])
    for name, p in (("gamma", gamma), ("beta", beta)):
        _checks.parameter(OP, name, p, word, word.shape[1])
    if beta is not None and gamma is None:
        raise ValueError(f"{OP}: beta needs gamma; without gamma there is no layer norm")


def _position_ids(tokens: Tensor, position: Tensor | None, position_ids: Tensor | None) -> Tensor | None:
    if position is None:
        if position_ids is not None:
            raise ValueError(f"{OP}: position_ids needs the table position")
        return None
    if position_ids is None:
        if tokens.shape[-1] > position.shape[0]:
            raise ValueError(
                f"{OP}: a sequence of {tokens.shape[-1]} tokens is longer than the {position.shape[0]} rows of position"
            )
        return torch.arange(tokens.shape[-1], device=tokens.device).expand(tokens.shape)
    _checks.integers(OP, "position_ids", position_ids, position, tokens.shape, torch.int64)
    _checks.in_range(OP, "position_ids", position_ids, 0, position.shape[0])
    return position_ids


def _forward(
    tokens: Tensor,
    word: Tensor,
    position: Tensor | None,
    position_ids: Tensor | None,
    segment: Tensor | None,
    segments: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    seed: Tensor | None,
    keep: int,
    eps: float,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ids = (None if t is None else t.reshape(-1) for t in (tokens, position_ids, segments))
    tokens_, positions_, segments_ = ids
    y, s, mean, rstd = reference.embedding_layer_norm_forward(
        tokens_, word, position, positions_, segment, segments_, gamma, beta, seed, keep, eps, dtype
    )
    shape = (*tokens.shape, word.shape[1])
    return y.view(shape), s if gamma is None else s.view(shape), mean, rstd


def _fake_forward(
    tokens: Tensor,
    word: Tensor,
    position: Tensor | None,
    position_ids: Tensor | None,
    segment: Tensor | None,
    segments: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    seed: Tensor | None,
    keep: int,
    eps: float,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = word.new_empty((*tokens.shape, word.shape[1]), dtype=dtype)
    if gamma is None:
        nothing = (word.new_empty(0, dtype=wide_dtype(word)) for _ in range(2))
        return y, y.new_empty(0), *nothing
    return y, y.new_empty(y.shape), statistics(y), statistics(y)


def _backward(
    dy: Tensor,
    s: Tensor,
    mean: Tensor,
    rstd: Tensor,
    tokens: Tensor,
    position_ids: Tensor | None,
    segments: Tensor | None,
    gamma: Tensor | None,
    seed: Tensor | None,
    keep: int,
    table_rows: list[int],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    columns = dy.shape[-1]
    rows = dy.reshape(-1, columns)
    s = rows if gamma is None else s.reshape(-1, columns)
    ds, dgamma, dbeta = reference.embedding_layer_norm_backward(rows, s, mean, rstd, gamma, seed, keep)
    tables = (
        ds.new_empty(0) if ids is None else reference.embedding_gradient(ds, ids.reshape(-1), count)
        for ids, count in zip((tokens, position_ids, segments), table_rows, strict=True)
    )
    return *tables, dgamma, dbeta


def _fake_backward(
    dy: Tensor,
    s: Tensor,
    mean: Tensor,
    rstd: Tensor,
    tokens: Tensor,
    position_ids: Tensor | None,
    segments: Tensor | None,
    gamma: Tensor | None,
    seed: Tensor | None,
    keep: int,
    table_rows: list[int],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    columns = dy.shape[-1]
    tables = (
        mean.new_empty(0) if ids is None else mean.new_empty(count, columns)
        for ids, count in zip((tokens, position_ids, segments), table_rows, strict=True)
    )
    shape = (0,) if gamma is None else (columns,)
    return *tables, mean.new_empty(shape), mean.new_empty(shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tokens, word, position, position_ids, segment, segments, gamma, beta, seed, ctx.keep, _, _, ctx.backend = inputs
    ctx.save_for_backward(*output[1:], tokens, position_ids, segments, gamma, seed)
    ctx.table_rows = [0 if t is None else t.shape[0] for t in (word, position, segment)]
    ctx.dtypes = [None if t is None else t.dtype for t in (word, position, segment, gamma, beta)]


def _autograd(ctx: Any, dy: Tensor, *_: None) -> tuple[Any, ...]:
    gradients = torch.ops.fastlm.embedding_layer_norm_backward(
        dy, *ctx.saved_tensors, ctx.keep, ctx.table_rows, ctx.backend
    )
    dword, dposition, dsegment, dgamma, dbeta = (
        None if dtype is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)
    )
    return None, dword, dposition, None, dsegment, None, dgamma, dbeta, None, None, None, None, None


define(
    "embedding_layer_norm(Tensor tokens, Tensor word, Tensor? position, Tensor? position_ids, Tensor? segment, "
    "Tensor? segments, Tensor? gamma, Tensor? beta, Tensor? seed, int keep, float eps, ScalarType dtype, "
    "str backend) -> (Tensor y, Tensor sum, Tensor mean, Tensor rstd)",
    _forward,
    _fake_forward,
    backward=_autograd,
    setup_context=_setup_context,
)
define(
    "embedding_layer_norm_backward(Tensor dy, Tensor sum, Tensor mean, Tensor rstd, Tensor tokens, "
    "Tensor? position_ids, Tensor? segments, Tensor? gamma, Tensor? seed, int keep, SymInt[] table_rows, "
    "str backend) -> (Tensor dword, Tensor dposition, Tensor dsegment, Tensor dgamma, Tensor dbeta)",
    _backward,
    _fake_backward,
)
