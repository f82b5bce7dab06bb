"""Self-attention with dropout on the probabilities: `attention` of q, k, v and `attention_packed` of one tensor qkv."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlm import backends
from fastlm.backends import ALL_DTYPES, HALF_DTYPES, KERNEL_DTYPES, SM80, Limits, Spec
from fastlm.dropout import keep_count
from fastlm.ops import _checks
from fastlm.ops._cost import Cost
from fastlm.ops._register import Direction, autocast, define, wide_dtype


def cost(pairs: int, rows: int, heads: int, head_dim: int, element: int = 2) -> Cost:
    """Returns the cost for q, k, v (N, H, D), each of x = N H D elements.

    `pairs` is the number of unmasked (query, key) pairs of one head, over all sequences: B S^2, or B S (S + 1) / 2 with
    a causal mask.
    Forward bytes = element * 4 x + 4 N H: reads q, k, v, writes o and lse.
    Backward bytes = element * 8 x + 4 N H: reads do, q, k, v, o and lse, writes dq, dk, dv.
    Only matrix products count as operations, 2 D per pair each: two forward; five backward, with the scores again.
    """
    x, lse = rows * heads * head_dim, 4 * rows * heads
    product = 2 * pairs * heads * head_dim
    return Cost(4 * element * x + lse, 2 * product, 8 * element * x + lse, 5 * product)


SPEC = Spec(
    "attention",
    kernels="attention",
    limits={
        "reference": Limits(ALL_DTYPES),
        "cpu": Limits(ALL_DTYPES),
        "triton": Limits(KERNEL_DTYPES, max_width=128, chip=SM80),
        # CUDA C++ reads heads 16 bytes at a time.
        "cuda": Limits(HALF_DTYPES, max_width=128, multiple=8, chip=SM80),
    },
    cost=cost,
)
PACKED = dataclasses.replace(SPEC, op="attention_packed")


class Outputs(NamedTuple):
    """Holds o (B, S, H, D) and lse (B, H, S); for packed rows (T, H, D) and (T, H)."""

    o: Tensor
    lse: Tensor


class Gradients(NamedTuple):
    dq: Tensor
    dk: Tensor
    dv: Tensor


class PackedGradient(NamedTuple):
    dqkv: Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    first_sequence: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Computes dropout(softmax(scale * q k^T + mask)) v (Vaswani et al. 2017, equation 1 and section 3.2.3).

    Args:
        q, k, v: (B, S, H, D), or with cu_seqlens the packed rows (T, H, D) of all sequences; one dtype (float32,
            float16, bfloat16, float64). The last stride must be 1, the others may be any. Backend "triton" takes D up
            to 128 and pads it to a power of 2. Backend "cuda" takes multiples of 8 up to 128, pads them to 32, 64 or
            128, and copies a tensor whose rows do not all start at multiples of 16 bytes.
        causal: whether a query sees only the keys up to its own position.
        scale: above 0, by default 1 / sqrt(D).
        lengths: (B,) int32, the lengths of padded sequences: keys past them are ignored, and queries there give zeros.
        starts: (B,) int32, for padding on the left: sequence b has rows starts[b] to starts[b] + lengths[b] - 1. Needs
            lengths; by default 0. Positions are counted from the sequence's first row, so the results are those of the
            same sequences padded on the right, with the same dropout.
        cu_seqlens: (B + 1,) int32, the first packed row of each sequence, and T at the end.
        max_seqlen: an upper bound of the lengths of the packed sequences; needed with cu_seqlens.
        dropout_p: probability of dropping an attention probability, in steps of 1/256.
        seed: one int64 on the device of q, needed if dropout_p > 0. The mask depends only on the seed, sequence, head,
            query and key, so packed and padded batches draw the same masks.
        first_sequence: the index of the first sequence in the whole batch, one int64 on the device of q, by default 0.
            With it, the parts of a batch draw the same masks as the whole batch would.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        o of the shape and dtype of q, contiguous.

    Raises:
        TypeError, ValueError: an argument's dtype, shape, stride, device or range is wrong.
        RuntimeError: the backend asked for cannot serve the call.
    """
    op = SPEC.op
    q, k, v = autocast(q, k, v)
    _check_projection(op, "q", q, 3 if cu_seqlens is not None else 4, "(T, H, D)", "(B, S, H, D)")
    for name, x in (("k", k), ("v", v)):
        _checks.check_activation(op, name, x, q)
        _check_stride(op, name, x)
    rows, keep, seed, first_sequence = _check_sequences(
        op, q, lengths, starts, cu_seqlens, max_seqlen, dropout_p, seed, first_sequence
    )
    scale = _check_scale(op, scale, q)
    backend = backends.choose(SPEC, backend, backends.call_of(q, width=q.shape[-1]))
    return _call(q, k, v, lengths, starts, cu_seqlens, rows, seed, first_sequence, causal, scale, keep, backend)[0]


def attention_packed(
    qkv: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    first_sequence: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Computes `attention` of the q, k, v inside a projection, which is not copied and has a single gradient.

    Args:
        qkv: (B, S, 3, H, D), or with cu_seqlens (T, 3, H, D); the rest as in `attention`.

    Returns:
        o (B, S, H, D) or (T, H, D), contiguous, in the dtype of qkv.

    Raises:
        The errors of `attention`.
    """
    op = PACKED.op
    (qkv,) = autocast(qkv)
    _check_projection(op, "qkv", qkv, 4 if cu_seqlens is not None else 5, "(T, 3, H, D)", "(B, S, 3, H, D)")
    if qkv.shape[-3] != 3:
        raise ValueError(f"{op}: qkv must have 3 (q, k, v) third from the right, got {tuple(qkv.shape)}")
    rows, keep, seed, first_sequence = _check_sequences(
        op, qkv, lengths, starts, cu_seqlens, max_seqlen, dropout_p, seed, first_sequence
    )
    scale = _check_scale(op, scale, qkv)
    backend = backends.choose(PACKED, backend, backends.call_of(qkv, width=qkv.shape[-1]))
    return _call_packed(qkv, lengths, starts, cu_seqlens, rows, seed, first_sequence, causal, scale, keep, backend)[0]


def _check_projection(op: str, name: str, x: Tensor, ndim: int, packed: str, padded: str) -> None:
    _checks.check_activation(op, name, x)
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
    scale = _checks.as_number(op, "scale", scale)
    if not scale > 0.0:
        raise ValueError(f"{op}: scale must be above 0, got {scale}")
    return scale


def _check_sequences(
    op: str,
    x: Tensor,
    lengths: Tensor | None,
    starts: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
    dropout_p: float,
    seed: Tensor | None,
    first_sequence: Tensor | None,
) -> tuple[int, int, Tensor | None, Tensor | None]:
    """Checks the arguments on sequences. Returns max_seqlen, the keep count, the seed and first_sequence."""
    keep = keep_count(_checks.as_number(op, "dropout_p", dropout_p))
    seed = _checks.checked_seed(op, seed, keep, x)
    first_sequence = _checks.checked_first(op, "first_sequence", first_sequence, keep, x)
    if cu_seqlens is None:
        if max_seqlen is not None:
            raise ValueError(f"{op}: max_seqlen goes with cu_seqlens")
        _checks.check_integers(op, "lengths", lengths, x, x.shape[:1], torch.int32)
        _checks.check_range(op, "lengths", lengths, 0, x.shape[1] + 1)
        if starts is not None:
            _check_starts(op, x, lengths, starts)
        return x.shape[1], keep, seed, first_sequence
    if lengths is not None or starts is not None:
        raise ValueError(f"{op}: give lengths and starts (padded rows) or cu_seqlens (packed rows), not both")
    if max_seqlen is None:
        raise ValueError(f"{op}: cu_seqlens needs max_seqlen, the longest sequence (known on the host)")
    max_seqlen = _checks.as_integer(op, "max_seqlen", max_seqlen)
    _checks.check_offsets(op, cu_seqlens, x, max_seqlen)
    return max_seqlen, keep, seed, first_sequence


def _check_starts(op: str, x: Tensor, lengths: Tensor | None, starts: Tensor) -> None:
    if lengths is None:
        raise ValueError(f"{op}: starts need lengths: sequence b has rows starts[b] to starts[b] + lengths[b] - 1")
    _checks.check_integers(op, "starts", starts, x, x.shape[:1], torch.int32)
    _checks.check_range(op, "starts", starts, 0, x.shape[1] + 1)
    if starts.device.type == "cpu":
        _checks.check_range(op, "starts + lengths", starts + lengths, 0, x.shape[1] + 1)


def _forward(
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
    backend: str,
) -> Outputs:
    compute = backends.implementation(SPEC, backend, "self_attention_forward", _launch_forward)
    q, k, v = _readable(backend, q, k, v)
    return Outputs(
        *compute(q, k, v, lengths, starts, cu_seqlens, max_seqlen, seed, first_sequence, causal, scale, keep)
    )


def _packed_forward(
    qkv: Tensor,
    lengths: Tensor | None,
    starts: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int,
    seed: Tensor | None,
    first_sequence: Tensor | None,
    causal: bool,
    scale: float,
    keep: int,
    backend: str,
) -> Outputs:
    return _forward(
        *qkv.unbind(-3), lengths, starts, cu_seqlens, max_seqlen, seed, first_sequence, causal, scale, keep, backend
    )


def _launch_forward(
    launchers: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    starts: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int,
    seed: Tensor | None,
    first_sequence: Tensor | None,
    *scalars: Any,
) -> Outputs:
    """Launches the forward; `scalars` are causal, scale and keep."""
    o, lse = outputs = _empty_outputs(q, q.shape)
    launchers.attention_forward(
        q, k, v, lengths, starts, cu_seqlens, max_seqlen, seed, first_sequence, o, lse, *scalars
    )
    return outputs


def _empty_outputs(x: Tensor, shape: tuple[int, ...]) -> Outputs:
    """Allocates o of `shape`, and lse."""
    *rows, heads, _ = shape
    lse = (rows[0], heads, rows[1]) if len(rows) == 2 else (rows[0], heads)
    return Outputs(x.new_empty(shape), x.new_empty(lse, dtype=wide_dtype(x)))


def _readable(backend: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Returns the tensors. Those whose rows are not aligned as the backend's loads require are copied."""
    elements = SPEC.limits[backend].multiple

    def readable(x: Tensor) -> bool:
        aligned = x.data_ptr() % (elements * x.element_size()) == 0
        return aligned and all(stride % elements == 0 for stride in x.stride()[:-1])

    return tuple(x if readable(x) else x.clone(memory_format=torch.contiguous_format) for x in tensors)


def _backward(
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
    backend: str,
) -> Gradients:
    compute = backends.implementation(SPEC, backend, "self_attention_backward", _launch_backward)
    do, q, k, v, o = _readable(backend, do, q, k, v, o)
    return Gradients(
        *compute(
            do, q, k, v, o, lse, lengths, starts, cu_seqlens, max_seqlen, seed, first_sequence, causal, scale, keep
        )
    )


def _packed_backward(
    do: Tensor,
    qkv: Tensor,
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
    backend: str,
) -> PackedGradient:
    compute = backends.implementation(SPEC, backend, "packed_attention_backward", _launch_packed_backward)
    do, qkv, o = _readable(backend, do, qkv, o)
    return PackedGradient(
        compute(do, qkv, o, lse, lengths, starts, cu_seqlens, max_seqlen, seed, first_sequence, causal, scale, keep)
    )


def _launch_backward(launchers: Any, do: Tensor, q: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Launches the backward into new dq, dk and dv."""
    return _launch_backward_into(launchers, tuple(q.new_empty(q.shape) for _ in range(3)), do, q, *rest)


def _launch_packed_backward(launchers: Any, do: Tensor, qkv: Tensor, *rest: Any) -> Tensor:
    """Launches the backward into the three parts of a new dqkv."""
    dqkv = qkv.new_empty(qkv.shape)
    _launch_backward_into(launchers, dqkv.unbind(-3), do, *qkv.unbind(-3), *rest)
    return dqkv


def _launch_backward_into(
    launchers: Any,
    gradients: tuple[Tensor, ...],
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
    *scalars: Any,
) -> tuple[Tensor, ...]:
    """Launches the backward into `gradients`; `scalars` are causal, scale and keep."""
    scratch = lse.new_empty(2, *lse.shape)
    sequences = (lengths, starts, cu_seqlens, max_seqlen, seed, first_sequence)
    launchers.attention_backward(do, q, k, v, o, lse, *sequences, *gradients, scratch, *scalars)
    return gradients


_call = define(
    SPEC.op,
    Direction(_forward, lambda a: _empty_outputs(a.q, a.q.shape), strided=("q", "k", "v")),
    Direction(_backward, lambda a: Gradients(*(a.q.new_empty(a.q.shape) for _ in range(3))), strided=("q", "k", "v")),
)
_call_packed = define(
    PACKED.op,
    Direction(
        _packed_forward,
        lambda a: _empty_outputs(a.qkv, (*a.qkv.shape[:-3], *a.qkv.shape[-2:])),
        strided=("qkv",),
    ),
    Direction(_packed_backward, lambda a: PackedGradient(a.qkv.new_empty(a.qkv.shape)), strided=("qkv",)),
)
