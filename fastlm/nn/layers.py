"""Drop-in modules that call the ops: the two parts of a transformer block, the embedding, and dropout.

A module with dropout takes the seed of its mask as an argument; in training it draws one if none is given. It declares
how many seeds a call uses (`dropout_sites`). A model draws the seeds of all calls at once (`draw_seeds`) and gives each
call its own seeds, also if one module is called several times. Every module takes `backend` ("auto", "reference",
"cpu", "triton" or "cuda"), and `device` and `dtype` as in torch.nn. Constructors raise TypeError or ValueError for an
argument that no call could use.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlm import ops
from fastlm.backends import checked_name
from fastlm.nn._modules import checked_dropout, checked_gelu, dropout_options, project
from fastlm.nn.layer_norm import LayerNorm
from fastlm.ops import _checks


class MLP(nn.Module):
    """Computes the feed-forward layer down(GELU(up(x))) (GPT-1 section 4.1; BERT section 3).

    Shapes: x (..., E) -> (..., E). Parameters: up (I, E) and down (E, I), each with a bias.
    With `return_bias` the result is (y, bias): y without the bias of `down`, which `AddLayerNorm` then adds.
    """

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        *,
        approximate: str = "tanh",
        return_bias: bool = False,
        backend: str = "auto",
        **factory: Any,
    ):
        super().__init__()
        for name, size in (("hidden", hidden), ("intermediate", intermediate)):
            _checks.checked_size("MLP", name, size)
        self.approximate, self.return_bias = checked_gelu(self, approximate), return_bias
        self.backend = checked_name(backend)
        self.up = nn.Linear(hidden, intermediate, **factory)
        self.down = nn.Linear(intermediate, hidden, **factory)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = F.linear(x, self.up.weight)
        h = ops.bias_gelu(h, self.up.bias, approximate=self.approximate, backend=self.backend)
        return project(self.down, h, self.return_bias)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}" + (", return_bias=True" if self.return_bias else "")


class SelfAttention(nn.Module):
    """Computes multi-head self-attention with dropout on the probabilities (Vaswani et al. 2017, section 3.2).

    Shapes: x (B, S, E) -> (B, S, E), or packed rows (T, E) -> (T, E) with cu_seqlens. Parameters: qkv (3E, E), whose
    rows are those of q for all heads, then of k, then of v; out (E, E); each with a bias.
    With `return_bias` the result is (y, bias): y without the bias of `out`, which `AddLayerNorm` then adds.
    """

    dropout_sites = 1

    def __init__(
        self,
        hidden: int,
        heads: int,
        *,
        causal: bool = False,
        dropout: float = 0.0,
        return_bias: bool = False,
        backend: str = "auto",
        **factory: Any,
    ):
        super().__init__()
        for name, size in (("hidden", hidden), ("heads", heads)):
            _checks.checked_size("SelfAttention", name, size)
        if hidden % heads:
            raise ValueError(f"hidden must be a multiple of heads, got hidden={hidden} and heads={heads}")
        self.heads, self.causal, self.dropout = heads, causal, checked_dropout(self, dropout)
        self.return_bias, self.backend = return_bias, checked_name(backend)
        self.qkv = nn.Linear(hidden, 3 * hidden, **factory)
        self.out = nn.Linear(hidden, hidden, **factory)

    def forward(
        self,
        x: Tensor,
        *,
        lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        seed: Tensor | None = None,
        first_sequence: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Applies self-attention; `lengths` (B,) int32, or `cu_seqlens` (B + 1,) int32 and `max_seqlen`.

        `seed`: one int64; `first_sequence`: as in `fastlm.attention`.
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        o = ops.attention_packed(
            qkv,
            causal=self.causal,
            lengths=lengths,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            **dropout_options(self, self.dropout, seed, x.device, first_sequence=first_sequence),
            backend=self.backend,
        )
        return project(self.out, o.flatten(-2), self.return_bias)

    def extra_repr(self) -> str:
        text = f"heads={self.heads}, causal={self.causal}, dropout={self.dropout}"
        return text + (", return_bias=True" if self.return_bias else "")


class EmbeddingLayerNorm(nn.Module):
    """Computes dropout(LN(word[tokens] + position[0 ... S - 1] + segment[segments])) (BERT, section 3; GPT-1, eq. 2).

    Shapes: tokens and segments (B, S) int64 -> (B, S, E). Parameters: word (V, E); position (C, E); segment (T, E) if
    `segments` > 0; norm (E,) unless `layer_norm` is False. Tables are initialised as N(0, 0.02).
    """

    dropout_sites = 1

    def __init__(
        self,
        vocab_size: int,
        context: int,
        hidden: int,
        *,
        segments: int = 0,
        layer_norm: bool = True,
        dropout: float = 0.0,
        eps: float = 1e-5,
        backend: str = "auto",
        **factory: Any,
    ):
        super().__init__()
        for name, size, least in (
            ("vocab_size", vocab_size, 1),
            ("context", context, 1),
            ("hidden", hidden, 1),
            ("segments", segments, 0),
        ):
            _checks.checked_size("EmbeddingLayerNorm", name, size, least)
        self.dropout, self.backend = checked_dropout(self, dropout), checked_name(backend)
        self.word = nn.Parameter(torch.empty(vocab_size, hidden, **factory))
        self.position = nn.Parameter(torch.empty(context, hidden, **factory))
        self.segment = nn.Parameter(torch.empty(segments, hidden, **factory)) if segments else None
        self.norm = LayerNorm(hidden, eps=eps, backend=backend, **factory) if layer_norm else None
        for table in (self.word, self.position, self.segment):
            if table is not None:
                nn.init.normal_(table, std=0.02)

    def forward(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        seed: Tensor | None = None,
        first_row: Tensor | None = None,
    ) -> Tensor:
        """Looks up the embeddings; `position_ids` int64 of the shape of tokens, by default 0 ... S - 1.

        `seed`: one int64; `first_row`: as in `fastlm.embedding_layer_norm`.
        """
        norm = {} if self.norm is None else {"gamma": self.norm.weight, "beta": self.norm.bias, "eps": self.norm.eps}
        return ops.embedding_layer_norm(
            tokens,
            self.word,
            position=self.position,
            position_ids=position_ids,
            segment=self.segment,
            segments=segments,
            **norm,
            **dropout_options(self, self.dropout, seed, tokens.device, first_row=first_row),
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        vocab_size, hidden = self.word.shape
        segments = "" if self.segment is None else f", segments={self.segment.shape[0]}"
        return f"{vocab_size}, {self.position.shape[0]}, {hidden}{segments}, dropout={self.dropout}"


class Dropout(nn.Module):
    """Computes dropout(x), as `torch.nn.Dropout`, with the masks of the row ops (see `fastlm.dropout`).

    Shapes: x (..., E) -> (..., E). The rows of x are numbered through all its dimensions but the last.
    """

    dropout_sites = 1

    def __init__(self, dropout: float, *, backend: str = "auto"):
        super().__init__()
        self.dropout, self.backend = checked_dropout(self, dropout), checked_name(backend)

    def forward(self, x: Tensor, *, seed: Tensor | None = None, first_row: Tensor | None = None) -> Tensor:
        """Applies dropout; `seed`: one int64; `first_row`: as in `fastlm.add_layer_norm`."""
        dropout = dropout_options(self, self.dropout, seed, x.device, first_row=first_row)
        if not dropout:
            return x
        # The embedding's op without a layer norm is a gather and dropout: here each row is gathered once, in order.
        table = x.flatten(0, -2)
        rows = torch.arange(table.shape[0], device=x.device)
        return ops.embedding_layer_norm(rows, table, **dropout, backend=self.backend).view(x.shape)

    def extra_repr(self) -> str:
        return f"{self.dropout}"
