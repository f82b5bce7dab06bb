"""The input representation: dropout(LN(We[tokens] + Wp[positions] + Ws[segments])), each part optional."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlm import backends
from fastlm.backends import Spec
from fastlm.dropout import LEVELS, keep_count
from fastlm.ops import _checks
from fastlm.ops._cost import Cost
from fastlm.ops._norm import NORM_BACKWARD, NORM_FORWARD, NORM_LIMITS
from fastlm.ops._register import (
    Direction,
    as_rows,
    autocast_dtype,
    define,
    empty_parameter_gradient,
    empty_row_stats,
    num_partials,
    wants_gradient,
    wide_dtype,
)

RUN = 32  # sorted ids per run; a run that holds a single id is summed first


def cost(
    rows: int,
    columns: int,
    vocabulary: int,
    positions: int = 0,
    segments: int = 0,
    element: int = 2,
    table: int = 4,
    *,
    layer_norm: bool = True,
) -> Cost:
    """Returns the cost for N tokens with int64 ids and tables of `table` bytes per element.

    Forward bytes = table * E (min(N, V) + positions + segments) + 8 N per table with ids + element * N E: reads tables
    and ids, writes y; with LN element * N E + 8 N more, for the sum and statistics.
    Backward: reads dy, ids and with LN the sum and statistics, writes the fp32 gradients of whole tables,
    4 E (V + positions + segments).
    Forward operations: one addition per table after the first, LN, dropout's factor.
    Backward operations: dropout's factor, LN, one addition per table.
    """
    n, tables = rows * columns, 1 + (positions > 0) + (segments > 0)
    ids = 8 * rows * (1 + (segments > 0))
    small = positions + segments
    saved = element * n + 8 * rows if layer_norm else 0
    forward = table * columns * (min(rows, vocabulary) + small) + ids + element * n + saved
    backward = element * n + ids + saved + 4 * columns * (vocabulary + small)
    return Cost(
        forward,
        (tables + NORM_FORWARD * layer_norm) * n,
        backward,
        (1 + NORM_BACKWARD * layer_norm + tables) * n,
    )


SPEC = Spec(
    "embedding_layer_norm",
    kernels="embedding_layer_norm",
    limits=NORM_LIMITS,
    cost=cost,
    order={(9, ""): ("cuda", "triton", "reference")},  # CUDA took 0.96 to 0.98 of Triton's time on an H200
)


class Outputs(NamedTuple):
    """Holds y and the tables' sum (..., S, E), and mean and rstd of its rows. Tensors that are not saved are empty."""

    y: Tensor
    sum: Tensor
    mean: Tensor
    rstd: Tensor


class Gradients(NamedTuple):
    """Holds the gradients, float32 (float64 for float64), empty for tables and parameters that are not given."""

    dword: Tensor
    dposition: Tensor
    dsegment: Tensor
    dgamma: Tensor
    dbeta: Tensor


def embedding_layer_norm(
    tokens: Tensor,
    word: Tensor,
    *,
    position: Tensor | None = None,
    position_ids: Tensor | None = None,
    segment: Tensor | None = None,
    segments: Tensor | None = None,
    padding_idx: int | None = None,
    position_padding_idx: int | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    first_row: Tensor | None = None,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """Computes dropout(LN(word[tokens] + position[position_ids] + segment[segments])) (BERT section 3; GPT-1 eq. 2).

    Args:
        tokens: (..., S) int64.
        word: (V, E) float32, float16, bfloat16 or float64; the other tables and gamma, beta share its dtype or
            are float32.
        position: (C, E), added at `position_ids` (int64, the shape of tokens), by default 0 ... S - 1.
        segment: (T, E), added at `segments` (int64, the shape of tokens).
        padding_idx, position_padding_idx: a row of `word`, or of `position`, that gets no gradient, as in
            `torch.nn.Embedding`.
        gamma, beta: (E,), of the layer norm. Without gamma there is no layer norm (GPT-1).
        dropout_p, seed, first_row: as in `add_layer_norm`.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        (..., S, E) in the dtype of `word`, or autocast's.

    Raises:
        TypeError, ValueError: an argument's dtype, shape, device or range is wrong. On a GPU the host does not wait, so
            ids out of range are an error of the device there.
        RuntimeError: the backend asked for cannot serve the call.
    """
    keep = keep_count(_checks.as_number(SPEC.op, "dropout_p", dropout_p))
    _check_tables(word, position, segment, gamma, beta)
    _checks.check_tensor(SPEC.op, "tokens", tokens, "a tensor of int64 of shape (..., S)")
    _checks.check_integers(SPEC.op, "tokens", tokens, word, tokens.shape, torch.int64)
    _checks.check_range(SPEC.op, "tokens", tokens, 0, word.shape[0])
    _check_positions(tokens, position, position_ids)
    _checks.check_together(SPEC.op, "segment", segment, "segments", segments)
    _checks.check_integers(SPEC.op, "segments", segments, word, tokens.shape, torch.int64)
    if segment is not None:
        _checks.check_range(SPEC.op, "segments", segments, 0, segment.shape[0])
    padding_idx = _checked_padding("padding_idx", padding_idx, word)
    position_padding_idx = _checked_padding("position_padding_idx", position_padding_idx, position)
    eps = _checks.checked_eps(SPEC.op, eps)
    seed = _checks.checked_seed(SPEC.op, seed, keep, word)
    first_row = _checks.checked_first(SPEC.op, "first_row", first_row, keep, word)
    dtype = autocast_dtype(word)
    backend = backends.choose(SPEC, backend, backends.call_of(word, dtype=dtype, width=word.shape[1]))
    save_sum = gamma is not None and wants_gradient(word, position, segment, gamma, beta)
    tables = (tokens, word, position, position_ids, segment, segments, gamma, beta, seed, first_row)
    return _call(*tables, keep, eps, dtype, save_sum, padding_idx, position_padding_idx, backend)[0]


def _check_tables(
    word: Tensor, position: Tensor | None, segment: Tensor | None, gamma: Tensor | None, beta: Tensor | None
) -> None:
    _checks.check_activation(SPEC.op, "word", word)
    if word.ndim != 2:
        raise ValueError(f"{SPEC.op}: word must have shape (V, E), got {tuple(word.shape)}")
    for name, table in (("position", position), ("segment", segment)):
        if table is not None:
            _checks.check_tensor(SPEC.op, name, table, "a tensor of shape (rows, E)")
            _checks.check_parameter(SPEC.op, name, table, word, table.shape[0], word.shape[1])
    for name, p in (("gamma", gamma), ("beta", beta)):
        _checks.check_parameter(SPEC.op, name, p, word, word.shape[1])
    if beta is not None and gamma is None:
        raise ValueError(f"{SPEC.op}: beta needs gamma; without gamma there is no layer norm")


def _checked_padding(name: str, row: int | None, table: Tensor | None) -> int | None:
    """Returns a table's row without a gradient, counted from its start. Raises ValueError if there is no such row."""
    if row is None:
        return None
    row, rows = _checks.as_integer(SPEC.op, name, row), 0 if table is None else table.shape[0]
    if not -rows <= row < rows:
        raise ValueError(f"{SPEC.op}: {name} must be a row of its table, which has {rows}, got {row}")
    return row % rows


def _check_positions(tokens: Tensor, position: Tensor | None, position_ids: Tensor | None) -> None:
    if position is None:
        if position_ids is not None:
            raise ValueError(f"{SPEC.op}: position_ids needs the table position")
        return
    if position_ids is None and tokens.shape[-1] > position.shape[0]:
        raise ValueError(
            f"{SPEC.op}: a sequence of {tokens.shape[-1]} tokens is longer than the {position.shape[0]} rows of "
            "position"
        )
    _checks.check_integers(SPEC.op, "position_ids", position_ids, position, tokens.shape, torch.int64)
    _checks.check_range(SPEC.op, "position_ids", position_ids, 0, position.shape[0])


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
    first_row: Tensor | None,
    keep: int,
    eps: float,
    dtype: torch.dtype,
    save_sum: bool,
    padding_idx: int | None,
    position_padding_idx: int | None,
    backend: str,
) -> Outputs:
    """Computes the outputs. The padding rows concern the backward alone."""
    compute = backends.implementation(SPEC, backend, "embedding_layer_norm_forward", _launch_forward)
    flat, positions, segments = (None if t is None else t.view(-1) for t in (tokens, position_ids, segments))
    tables = (flat, word, position, positions, segment, segments, gamma, beta, seed, first_row)
    y, s, mean, rstd = compute(*tables, tokens.shape[-1], keep, eps, dtype, save_sum)
    shape = (*tokens.shape, word.shape[1])
    return Outputs(y.view(shape), s.view(shape) if save_sum else s, mean, rstd)


def _launch_forward(
    launchers: Any,
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
) -> Outputs:
    """Launches the forward for ids (N,). Without position_ids, row n has position n % sequence."""
    y, s, mean, rstd = outputs = _empty_outputs(tokens, word, gamma, dtype, save_sum)
    tables = (tokens, word, position, position_ids, segment, segments, gamma, beta, seed, first_row)
    norm = (None, None, None) if gamma is None else (s if save_sum else None, mean, rstd)
    launchers.embedding_layer_norm_forward(*tables, y, *norm, sequence, keep, eps)
    return outputs


def _empty_outputs(tokens: Tensor, word: Tensor, gamma: Tensor | None, dtype: torch.dtype, save_sum: bool) -> Outputs:
    y = word.new_empty((*tokens.shape, word.shape[1]), dtype=dtype)
    statistics = (y.new_empty(0, dtype=wide_dtype(y)) if gamma is None else empty_row_stats(y) for _ in range(2))
    return Outputs(y, y.new_empty(y.shape if save_sum else 0), *statistics)


def _backward(
    dy: Tensor,
    sum: Tensor,
    mean: Tensor,
    rstd: Tensor,
    tokens: Tensor,
    position_ids: Tensor | None,
    segments: Tensor | None,
    gamma: Tensor | None,
    seed: Tensor | None,
    first_row: Tensor | None,
    keep: int,
    table_rows: list[int],
    padding_idx: int | None,
    position_padding_idx: int | None,
    backend: str,
) -> Gradients:
    """Computes the gradients. `table_rows`: the number of rows of word, position and segment, 0 for no table."""
    ds, dgamma, dbeta = _sum_gradient(as_rows(dy), sum, mean, rstd, gamma, seed, first_row, keep, backend)
    word_rows, position_rows, segment_rows = table_rows
    dword = _table_gradient(ds, tokens, word_rows, backend)
    if position_ids is None and position_rows:
        dposition = _position_gradient(ds, tokens, position_rows)
    else:
        dposition = _table_gradient(ds, position_ids, position_rows, backend)
    for gradient, row in ((dword, padding_idx), (dposition, position_padding_idx)):
        if row is not None:
            gradient[row].zero_()
    return Gradients(dword, dposition, _table_gradient(ds, segments, segment_rows, backend), dgamma, dbeta)


def _sum_gradient(
    dy: Tensor,
    s: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor | None,
    seed: Tensor | None,
    first_row: Tensor | None,
    keep: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ds (N, E), the gradient of the tables' sum, and dgamma, dbeta (E,), empty without layer norm."""
    if gamma is None and keep == LEVELS:
        return dy, mean.new_empty(0), mean.new_empty(0)
    compute = backends.implementation(SPEC, backend, "embedding_layer_norm_backward", _launch_backward)
    return compute(dy, None if gamma is None else as_rows(s), mean, rstd, gamma, seed, first_row, keep)


def _launch_backward(
    launchers: Any,
    dy: Tensor,
    s: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor | None,
    seed: Tensor | None,
    first_row: Tensor | None,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the backward of dropout(LN(s)), s (N, E); without gamma, of dropout(s)."""
    ds = torch.empty_like(dy)
    if gamma is None:
        launchers.embedding_layer_norm_backward(dy, None, None, None, None, seed, first_row, ds, None, None, keep, None)
        return ds, mean.new_empty(0), mean.new_empty(0)
    dgamma, dbeta = empty_parameter_gradient(dy), empty_parameter_gradient(dy)
    partials = mean.new_empty(2, num_partials(dy.shape[0], dy.device), dy.shape[1])
    launchers.embedding_layer_norm_backward(
        dy, s, mean, rstd, gamma, seed, first_row, ds, dgamma, dbeta, keep, partials
    )
    return ds, dgamma, dbeta


def _table_gradient(ds: Tensor, ids: Tensor | None, rows: int, backend: str) -> Tensor:
    """Returns the gradient of a table: row r is the sum of the rows of ds (N, E) whose id is r. Empty without ids."""
    if ids is None:
        return ds.new_empty(0, ds.shape[1], dtype=wide_dtype(ds))
    return backends.implementation(SPEC, backend, "embedding_gradient", _launch_embedding_gradient)(
        ds, ids.view(-1), rows
    )


def _launch_embedding_gradient(launchers: Any, ds: Tensor, ids: Tensor, rows: int) -> Tensor:
    """Launches the gradient of a table of `rows` rows."""
    # Sorting int32 takes half the passes of int64. The sort is stable, so rows of equal ids are added in a fixed order.
    sorted_ids, order = torch.sort(ids.to(torch.int32), stable=True)
    starts = torch.searchsorted(sorted_ids, torch.arange(rows + 1, dtype=torch.int32, device=ids.device))
    runs, out = (ds.new_empty(n, ds.shape[1], dtype=torch.float32) for n in (ds.shape[0] // RUN, rows))
    launchers.embedding_gradient(ds, sorted_ids, order, starts, runs, out, RUN)
    return out


def _position_gradient(ds: Tensor, tokens: Tensor, rows: int) -> Tensor:
    """Computes `_table_gradient` for the position ids 0 ... S - 1 of every sequence: a sum over the batch."""
    batch, sequence = math.prod(tokens.shape[:-1]), tokens.shape[-1]
    out = ds.new_zeros(rows, ds.shape[1], dtype=wide_dtype(ds))
    torch.sum(ds.view(batch, sequence, ds.shape[1]), 0, dtype=out.dtype, out=out[:sequence])
    return out


def _empty_gradients(dy: Tensor, table_rows: list[int], gamma: Tensor | None) -> Gradients:
    wide, columns = wide_dtype(dy), dy.shape[-1]
    tables = (dy.new_empty(rows, columns, dtype=wide) for rows in table_rows)
    return Gradients(*tables, *(dy.new_empty(0 if gamma is None else columns, dtype=wide) for _ in range(2)))


_call = define(
    SPEC.op,
    Direction(_forward, lambda a: _empty_outputs(a.tokens, a.word, a.gamma, a.dtype, a.save_sum)),
    Direction(_backward, lambda a: _empty_gradients(a.dy, a.table_rows, a.gamma)),
    save=lambda a, out: {"table_rows": [0 if t is None else t.shape[0] for t in (a.word, a.position, a.segment)]},
)
