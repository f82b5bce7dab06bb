"""Launches of kernels/attention.py: BERT at S = 128 and 512, GPT-1, packed sequences, other head_dims, float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.resources import BF16, FP32, empty
from fastlm.dropout import LEVELS, keep_count
from fastlm.kernels.attention import attention_backward, attention_forward

TOKENS, WIDTH = 65536, 768


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    yield "128 x 64 dropout lengths", partial(_attention, 128, lengths=True)
    yield "512 x 64 dropout lengths", partial(_attention, 512, lengths=True)
    yield "128 x 64 dropout starts", partial(_attention, 128, lengths=True, starts=True)
    yield "512 x 64 causal dropout starts", partial(_attention, 512, causal=True, lengths=True, starts=True)
    yield "512 x 64 causal dropout", partial(_attention, 512, causal=True)
    yield "512 x 64 causal", partial(_attention, 512, causal=True, p=0.0)
    yield "512 x 64 dropout cu_seqlens", partial(_attention, 512, packed=True)
    yield "512 x 32 dropout", partial(_attention, 512, dim=32)
    yield "512 x 96 causal dropout", partial(_attention, 512, dim=96, causal=True)
    yield "512 x 128 dropout", partial(_attention, 512, dim=128)
    yield "512 x 64 fp32 dropout", partial(_attention, 512, dtype=FP32)


def _attention(
    sequence: int,
    dim: int = 64,
    dtype: torch.dtype = BF16,
    p: float = 0.1,
    *,
    causal: bool = False,
    lengths: bool = False,
    starts: bool = False,
    packed: bool = False,
) -> None:
    """Launches the forward and backward. q, k and v are views of a projection (B, S, 3, H, D) or (T, 3, H, D)."""
    batch, heads = TOKENS // sequence, WIDTH // dim
    rows = (TOKENS,) if packed else (batch, sequence)
    qkv, dqkv = (empty(*rows, 3, heads, dim, dtype=dtype).unbind(-3) for _ in range(2))
    o = empty(*rows, heads, dim, dtype=dtype)
    lse = empty(TOKENS, heads, dtype=FP32) if packed else empty(batch, heads, sequence, dtype=FP32)
    keep = keep_count(p)
    sequences = (
        empty(batch, dtype=torch.int32) if lengths else None,
        empty(batch, dtype=torch.int32) if starts else None,
        empty(batch + 1, dtype=torch.int32) if packed else None,
        sequence,
        *(empty(1, dtype=torch.int64) if keep < LEVELS else None for _ in ("seed", "first_sequence")),
    )
    rest = causal, dim**-0.5, keep
    attention_forward(*qkv, *sequences, o, lse, *rest)
    attention_backward(o, *qkv, o, lse, *sequences, *dqkv, empty(2, *lse.shape, dtype=FP32), *rest)
