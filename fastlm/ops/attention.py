"""Self-attention with dropout on the probabilities: `attention` of q, k, v and `attention_packed` of a projection."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastlm import backends, reference
from fastlm.dropout import keep_count
from fastlm.ops import _checks
from fastlm.ops._register import autocast, define, wide_dtype


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """dropout(softmax(scale * q k^T + mask)) v (Vaswani et al. 2017, equation 1 and section 3.2.3).

    Args:
        q, k, v: (B, S, H, D), one dtype (float32, float16, bfloat16, float64), any strides but 1 in the last
            dimension; or with cu_seqlens the packed rows (T, H, D) of all sequences. Backend "triton" takes D up to
            128, and computes as if it were the next power of 2; "cuda" takes multiples of 8 up to 128, as if 32, 64 or
            128, and copies what does not begin and go on at multiples of 16 bytes.
        causal: a query sees the keys up to its own position.
        scale: above 0, by default 1 / sqrt(D).
        lengths: (B,) int32; keys from a sequence's length on take no part, and queries there give zeros.
        cu_seqlens: (B + 1,) int32, where each sequence of packed rows starts, and T.
        max_seqlen: the longest packed sequence or more; needed with cu_seqlens.
        dropout_p: probability of dropping a probability, in steps of 1/256. seed: one int64, needed where it is > 0.
            The mask depends on the sequence, head, query and key alone: packed and padded batches draw the same.
        backend: "auto", "reference", "triton" or "cuda".

    Returns:
        o of the shape and dtype of q, contiguous.

    Raises:
        TypeError, ValueError: an argument's dtype, shape, stride, device or range is wrong.
        RuntimeError: the backend asked for cannot serve the call.
    """
    op = "attention"
    q, k, v = autocast(q, k, v)
    _check_projection(op, "q", q, 3 if cu_seqlens is not None else 4, "(T, H, D)", "(B, S, H, D)")
    for name, x in (("k", k), ("v", v)):
        _checks.activation(op, name, x, q)
        _check_stride(op, name, x)
    rows, keep, seed = _check_sequences(op, q, lengths, cu_seqlens, max_seqlen, dropout_p, seed)
    scale = _check_scale(op, scale, q)
    backend = backends.resolve(op, backend, q.dtype, q.device.type, q.shape[-1])
    return torch.ops.fastlm.attention(q, k, v, lengths, cu_seqlens, rows, seed, causal, scale, keep, backend)[0]


def attention_packed(
    qkv: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """`attention` of a projection read in place, with one gradient of its shape.

    Args:
        qkv: (B, S, 3, H, D), or with cu_seqlens (T, 3, H, D); the rest as in `attention`.

    Returns:
        o (B, S, H, D) or (T, H, D), contiguous, in the dtype of qkv.

    Raises:
        As `attention`.
    """
    op = "attention_packed"
    (qkv,) = autocast(qkv)
    _check_projection(op, "qkv", qkv, 4 if cu_seqlens is not None else 5, "(T, 3, H, D)", "(B, S, 3, H, D)")
    if qkv.shape[-3] != 3:
        raise ValueError(f"{op}: qkv must have 3 (q, k, v) third from the right, got {tuple(qkv.shape)}")
    rows, keep, seed = _check_sequences(op, qkv, lengths, cu_seqlens, max_seqlen, dropout_p, seed)
    scale = _check_scale(op, scale, qkv)
    backend = backends.resolve(op, backend, qkv.dtype, qkv.device.type, qkv.shape[-1])
    return torch.ops.fastlm.attention_packed(qkv, lengths, cu_seqlens, rows, seed, causal, scale, keep, backend)[0]


def _check_projection(op: str, name: str, x: Tensor, ndim: int, packed: str, padded: str) -> None:
    _checks.activation(op, name, x)
    if x.ndim != ndim:
        raise ValueError(
            f"{op}: {name} must have shape {padded}, or {packed} with cu_seqlens, got {tuple(x.shape)}"
            f" with{'' if packed.count(',') == ndim - 1 else 'out'} cu_seqlens"
        )
    _check_stride(op, name, x)


def _check_stride(op: str, name: str, x: Tensor) -> None:
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise ValueError(
            f"{op}: {name} must have stride 1 in its last dimension, got {x.stride(-1)}; pass {name}.contiguous()"
        )


def _check_scale(op: str, scale: float | None, x: Tensor) -> float:
    if scale is None:
        return 1 / math.sqrt(x.shape[-1])
    scale = _checks.number(op, "scale", scale)
    if not scale > 0.0:
        raise ValueError(f"{op}: scale must be above 0, got {scale}")
    return scale


def _check_sequences(
    op: str,
    x: Tensor,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[int, int, Tensor | None]:
    """The longest sequence, the keep count and the seed."""
    keep = keep_count(_checks.number(op, "dropout_p", dropout_p))
    seed = _checks.seed(op, seed, keep, x)
    if cu_seqlens is None:
        if max_seqlen is not None:
            raise ValueError(f"{op}: max_seqlen goes with cu_seqlens")
        _checks.integers(op, "lengths", lengths, x, x.shape[:1], torch.int32)
        _checks.in_range(op, "lengths", lengths, 0, x.shape[1] + 1)
        return x.shape[1], keep, seed
    if lengths is not None:
        raise ValueError(f"{op}: give lengths (padded rows) or cu_seqlens (packed rows), not both")
    if max_seqlen is None:
        raise ValueError(f"{op}: cu_seqlens needs max_seqlen, the longest sequence (known on the host)")
    max_seqlen = _checks.integer(op, "max_seqlen", max_seqlen)
    _checks.tensor(op, "cu_seqlens", cu_seqlens, "a tensor of int32 of shape (B + 1,)")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(f"{op}: cu_seqlens must have shape (B + 1,) with B >= 1, got {tuple(cu_seqlens.shape)}")
    _checks.integers(op, "cu_seqlens", cu_seqlens, x, cu_seqlens.shape, torch.int32)
    if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_offsets(op, cu_seqlens, x.shape[0], max_seqlen)
    return max_seqlen, keep, seed


def _check_offsets(op: str, cu_seqlens: Tensor, rows: int, max_seqlen: int) -> None:
    steps = cu_seqlens.diff()
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != rows or (steps < 0).any():
        raise ValueError(f"{op}: cu_seqlens must rise from 0 to the {rows} rows given, got {cu_seqlens.tolist()}")
    if steps.max() > max_seqlen:
        raise ValueError(f"{op}: max_seqlen must be at least the longest sequence, {steps.max()}, got {max_seqlen}")


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int,
    seed: Tensor | None,
    causal: bool,
    scale: float,
    keep: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if backend != "reference":
        o, lse = _outputs(q, q.shape)
        launchers = backends.launchers(backend, "attention")
        q, k, v = _chunked(backend, q, k, v)
        launchers.attention_forward(q, k, v, lengths, cu_seqlens, max_seqlen, seed, o, lse, causal, scale, keep)
        return o, lse
    if cu_seqlens is None:
        return reference.attention_forward(q, k, v, lengths, seed, causal, scale, keep)
    rows = q.shape[0]
    q, k, v = (reference.pad(x, cu_seqlens, max_seqlen) for x in (q, k, v))
    o, lse = reference.attention_forward(q, k, v, cu_seqlens.diff(), seed, causal, scale, keep)
    return tuple(reference.unpad(x, cu_seqlens, rows) for x in (o, lse.transpose(1, 2)))


def _fake_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int,
    seed: Tensor | None,
    causal: bool,
    scale: float,
    keep: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _outputs(q, q.shape)


def _chunked(backend: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, with copies of those that CUDA C++ cannot read 16 bytes of two-byte elements at a time."""

    def readable(x: Tensor) -> bool:
        return x.data_ptr() % 16 == 0 and all(stride % 8 == 0 for stride in x.stride()[:-1])

    if backend != "cuda":
        return tensors
    return tuple(x if readable(x) else x.clone(memory_format=torch.contiguous_format) for x in tensors)


def _outputs(x: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """o of `shape`, and lse: (B, H, S), or (T, H) for packed rows."""
    *rows, heads, _ = shape
    lse = (rows[0], heads, rows[1]) if len(rows) == 2 else (rows[0], heads)
    return x.new_empty(shape), x.new_empty(lse, dtype=wide_dtype(x))


def _backward(do: Tensor, q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    if rest[-1] == "reference":
        return _reference_backward(do, q, *rest)
    return _launch_backward(tuple(q.new_empty(q.shape) for _ in range(3)), do, q, *rest)


def _packed_backward(do: Tensor, qkv: Tensor, *rest: Any) -> Tensor:
    if rest[-1] == "reference":
        return torch.stack(_reference_backward(do, *qkv.unbind(-3), *rest), dim=-3)
    dqkv = qkv.new_empty(qkv.shape)
    _launch_backward(dqkv.unbind(-3), do, *qkv.unbind(-3), *rest)
    return dqkv


def _launch_backward(
    gradients: tuple[Tensor, ...],
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
    causal: bool,
    scale: float,
    keep: int,
    backend: str,
) -> tuple[Tensor, ...]:
    """The gradients of q, k and v, written where `gradients` lie."""
    do, q, k, v, o = _chunked(backend, do, q, k, v, o)
    backends.launchers(backend, "attention").attention_backward(
        do,
        q,
        k,
        v,
        o,
        lse,
        lengths,
        cu_seqlens,
        max_seqlen,
        seed,
        *gradients,
        lse.new_empty(2, *lse.shape),
        causal,
        scale,
        keep,
    )
    return gradients


def _reference_backward(
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
    causal: bool,
    scale: float,
    keep: int,
    _: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if cu_seqlens is None:
        return reference.attention_backward(do, q, k, v, o, lse, lengths, seed, causal, scale, keep)
    rows = q.shape[0]
    do, q, k, v, o, lse = (reference.pad(x, cu_seqlens, max_seqlen) for x in (do, q, k, v, o, lse))
    lengths, lse = cu_seqlens.diff(), lse.transpose(1, 2)
    gradients = reference.attention_backward(do, q, k, v, o, lse, lengths, seed, causal, scale, keep)
    return tuple(reference.unpad(x, cu_seqlens, rows) for x in gradients)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *projections, lengths, cu_seqlens, ctx.max_seqlen, seed, ctx.causal, ctx.scale, ctx.keep, ctx.backend = inputs
    ctx.save_for_backward(*projections, *output, lengths, cu_seqlens, seed)


def _gradients(ctx: Any, op: Any, do: Tensor) -> Any:
    *tensors, seed = ctx.saved_tensors
    return op(do, *tensors, ctx.max_seqlen, seed, ctx.causal, ctx.scale, ctx.keep, ctx.backend)


def _autograd(ctx: Any, do: Tensor, _: None) -> tuple[Any, ...]:
    return *_gradients(ctx, torch.ops.fastlm.attention_backward, do), *[None] * 8


_SEQUENCES = "Tensor? lengths, Tensor? cu_seqlens, SymInt max_seqlen, Tensor? seed, bool causal, float scale, int keep"

define(
    f"attention(Tensor q, Tensor k, Tensor v, {_SEQUENCES}, str backend) -> (Tensor o, Tensor lse)",
    _forward,
    _fake_forward,
    backward=_autograd,
    setup_context=_setup_context,
    strided=("q", "k", "v"),
)
define(
    f"attention_backward(Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, {_SEQUENCES}, str backend) "
    "-> (Tensor dq, Tensor dk, Tensor dv)",
    _backward,
    lambda do, q, *_: tuple(q.new_empty(q.shape) for _ in range(3)),
    strided=("q", "k", "v"),
)
define(
    f"attention_packed(Tensor qkv, {_SEQUENCES}, str backend) -> (Tensor o, Tensor lse)",
    lambda qkv, *rest: _forward(*qkv.unbind(-3), *rest),
    lambda qkv, *_: _outputs(qkv, (*qkv.shape[:-3], *qkv.shape[-2:])),
    backward=lambda ctx, do, _: (
        _gradients(ctx, torch.ops.fastlm.attention_packed_backward, do),
        *[None] * 8,
    ),
    setup_context=_setup_context,
    strided=("qkv",),
)
define(
    f"attention_packed_backward(Tensor do, Tensor qkv, Tensor o, Tensor lse, {_SEQUENCES}, str backend) -> Tensor dqkv",
    _packed_backward,
    lambda do, qkv, *_: qkv.new_empty(qkv.shape),
    strided=("qkv",),
)
