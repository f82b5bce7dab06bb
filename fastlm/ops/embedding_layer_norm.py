"""The input representation: dropout(LN(We[tokens] + Wp[positions] + Ws[segments])), each part optional."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastlm import backends, reference
from fastlm.dropout import LEVELS, keep_count
from fastlm.ops import _checks
from fastlm.ops._register import (
    as_rows,
    autocast_dtype,
    define,
    programs,
    statistics,
    wants_gradient,
    wide_dtype,
)

OP = "embedding_layer_norm"
RUN = 32  # places of the sorted ids that one sum covers where they hold a single id


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
    keep = keep_count(_checks.number(OP, "dropout_p", dropout_p))
    _check_tables(word, position, segment, gamma, beta)
    _checks.tensor(OP, "tokens", tokens, "a tensor of int64 of shape (..., S)")
    _checks.integers(OP, "tokens", tokens, word, tokens.shape, torch.int64)
    _checks.in_range(OP, "tokens", tokens, 0, word.shape[0])
    _check_positions(tokens, position, position_ids)
    _checks.together(OP, "segment", segment, "segments", segments)
    _checks.integers(OP, "segments", segments, word, tokens.shape, torch.int64)
    if segment is not None:
        _checks.in_range(OP, "segments", segments, 0, segment.shape[0])
    eps = _checks.epsilon(OP, eps)
    seed = _checks.seed(OP, seed, keep, word)
    dtype = autocast_dtype(word)
    backend = backends.resolve(OP, backend, dtype, word.device.type, word.shape[1])
    save_sum = gamma is not None and wants_gradient(word, position, segment, gamma, beta)
    return torch.ops.fastlm.embedding_layer_norm(
        tokens, word, position, position_ids, segment, segments, gamma, beta, seed, keep, eps, dtype, save_sum, backend
    )[0]


def _check_tables(
    word: Tensor, position: Tensor | None, segment: Tensor | None, gamma: Tensor | None, beta: Tensor | None
) -> None:
    _checks.activation(OP, "word", word)
    if word.ndim != 2:
        raise ValueError(f"{OP}: word must have shape (V, E), got {tuple(word.shape)}")
    for name, table in (("position", position), ("segment", segment)):
        if table is not None:
            _checks.tensor(OP, name, table, "a tensor of shape (rows, E)")
            _checks.parameter(OP, name, table, word, table.shape[0], word.shape[1])
    for name, p in (("gamma", gamma), ("beta", beta)):
        _checks.parameter(OP, name, p, word, word.shape[1])
    if beta is not None and gamma is None:
        raise ValueError(f"{OP}: beta needs gamma; without gamma there is no layer norm")


def _check_positions(tokens: Tensor, position: Tensor | None, position_ids: Tensor | None) -> None:
    if position is None:
        if position_ids is not None:
            raise ValueError(f"{OP}: position_ids needs the table position")
        return
    if position_ids is None and tokens.shape[-1] > position.shape[0]:
        raise ValueError(
            f"{OP}: a sequence of {tokens.shape[-1]} tokens is longer than the {position.shape[0]} rows of position"
        )
    _checks.integers(OP, "position_ids", position_ids, position, tokens.shape, torch.int64)
    _checks.in_range(OP, "position_ids", position_ids, 0, position.shape[0])


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
    save_sum: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if backend == "reference" and position is not None and position_ids is None:
        position_ids = torch.arange(tokens.shape[-1], device=tokens.device).expand(tokens.shape)
    tokens_, positions_, segments_ = (None if t is None else t.reshape(-1) for t in (tokens, position_ids, segments))
    tables = (tokens_, word, position, positions_, segment, segments_, gamma, beta, seed)
    outputs = y, s, mean, rstd = _outputs(tokens, word, gamma, dtype, save_sum)
    if backend == "reference":
        y, s, mean, rstd = reference.embedding_layer_norm_forward(*tables, keep, eps, dtype)
        return y.view(outputs[0].shape), s.view(outputs[1].shape) if save_sum else outputs[1], mean, rstd
    sum_, mean, rstd = (as_rows(s) if save_sum else None, mean, rstd) if gamma is not None else (None,) * 3
    backends.launchers(backend, OP).embedding_layer_norm_forward(
        *tables, as_rows(y), sum_, mean, rstd, tokens.shape[-1], keep, eps
    )
    return outputs


def _outputs(
    tokens: Tensor, word: Tensor, gamma: Tensor | None, dtype: torch.dtype, save_sum: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = word.new_empty((*tokens.shape, word.shape[1]), dtype=dtype)
    s = y.new_empty(y.shape if save_sum else 0)
    return y, s, *(y.new_empty(0, dtype=wide_dtype(y)) if gamma is None else statistics(y) for _ in range(2))


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
    save_sum: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(tokens, word, gamma, dtype, save_sum)


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
    ds, dgamma, dbeta = _sum_gradient(as_rows(dy), s, mean, rstd, gamma, seed, keep, backend)
    word_rows, position_rows, segment_rows = table_rows
    dword = _table_gradient(ds, tokens, word_rows, backend)
    if position_ids is None and position_rows:
        dposition = _position_gradient(ds, tokens, position_rows)
    else:
        dposition = _table_gradient(ds, position_ids, position_rows, backend)
    return dword, dposition, _table_gradient(ds, segments, segment_rows, backend), dgamma, dbeta


def _sum_gradient(
    dy: Tensor,
    s: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor | None,
    seed: Tensor | None,
    keep: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """ds (N, E) of the tables' sum, dgamma and dbeta (E,), empty without layer norm."""
    nothing = mean.new_empty(0)
    if gamma is None and keep == LEVELS:
        return dy, nothing, nothing.clone()
    s = None if gamma is None else as_rows(s)
    if backend == "reference":
        return reference.embedding_layer_norm_backward(dy, s, mean, rstd, gamma, seed, keep)
    ds = torch.empty_like(dy)
    launch = backends.launchers(backend, OP).embedding_layer_norm_backward
    if gamma is None:
        launch(dy, None, None, None, None, seed, ds, None, None, keep, None)
        return ds, nothing, nothing.clone()
    dgamma, dbeta = (mean.new_empty(gamma.shape) for _ in range(2))
    partials = mean.new_empty(2, programs(dy.shape[0], dy.device), dy.shape[1])
    launch(dy, s, mean, rstd, gamma, seed, ds, dgamma, dbeta, keep, partials)
    return ds, dgamma, dbeta


def _table_gradient(ds: Tensor, ids: Tensor | None, rows: int, backend: str) -> Tensor:
    """The (rows, E) sums of ds (N, E) over the places of each id, wide; without ids there is no table and no row."""
    if ids is None:
        return ds.new_empty(0, ds.shape[1], dtype=wide_dtype(ds))
    if backend == "reference":
        return reference.embedding_gradient(ds, ids.reshape(-1), rows)
    # Half the bits, half the passes of the sort; rows of equal id stay in their order, so that sums repeat.
    sorted_ids, order = torch.sort(ids.reshape(-1).to(torch.int32), stable=True)
    starts = torch.searchsorted(sorted_ids, torch.arange(rows + 1, dtype=torch.int32, device=ids.device))
    runs, out = (ds.new_empty(n, ds.shape[1], dtype=torch.float32) for n in (ds.shape[0] // RUN, rows))
    backends.launchers(backend, OP).embedding_gradient(ds, sorted_ids, order, starts, runs, out, RUN)
    return out


def _position_gradient(ds: Tensor, tokens: Tensor, rows: int) -> Tensor:
    """`_table_gradient` where the ids of every sequence are 0 ... S - 1: a sum over the batch."""
    batch, sequence = math.prod(tokens.shape[:-1]), tokens.shape[-1]
    out = ds.new_zeros(rows, ds.shape[1], dtype=wide_dtype(ds))
    torch.sum(ds.view(batch, sequence, ds.shape[1]), 0, dtype=out.dtype, out=out[:sequence])
    return out


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
    tables = (mean.new_empty(rows, columns) for rows in table_rows)
    shape = (0,) if gamma is None else (columns,)
    return *tables, mean.new_empty(shape), mean.new_empty(shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tokens, word, position, position_ids, segment, segments, gamma, beta, seed, ctx.keep, *_, ctx.backend = inputs
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
    return None, dword, dposition, None, dsegment, None, dgamma, dbeta, *(None,) * 6


define(
    "embedding_layer_norm(Tensor tokens, Tensor word, Tensor? position, Tensor? position_ids, Tensor? segment, "
    "Tensor? segments, Tensor? gamma, Tensor? beta, Tensor? seed, int keep, float eps, ScalarType dtype, "
    "bool save_sum, str backend) -> (Tensor y, Tensor sum, Tensor mean, Tensor rstd)",
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
