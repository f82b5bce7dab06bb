"""Drop-in modules that call the ops.

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
from fastlm.dropout import draw_seeds, keep_count
from fastlm.ops import _checks
from fastlm.ops.linear_cross_entropy import checked_options

__all__ = [
    "MLP",
    "AddLayerNorm",
    "BiasGELU",
    "Dropout",
    "EmbeddingLayerNorm",
    "GELULayerNorm",
    "LayerNorm",
    "LayerNormGELU",
    "LinearCrossEntropy",
    "SelfAttention",
]


class LayerNorm(nn.Module):
    """Computes LN(x) over the last dimension, as `torch.nn.LayerNorm(hidden)`, with the same names in the state dict.

    Shapes: x (..., E) -> (..., E). Parameters: weight (E,); bias (E,) unless `bias` is False.
    """

    def __init__(self, hidden: int, *, eps: float = 1e-5, bias: bool = True, backend: str = "auto", **factory: Any):
        super().__init__()
        name = type(self).__name__
        self.hidden, self.eps = _checks.checked_size(name, "hidden", hidden), _checks.checked_eps(name, eps)
        self.backend = checked_name(backend)
        self.weight = nn.Parameter(torch.ones(hidden, **factory))
        self.bias = nn.Parameter(torch.zeros(hidden, **factory)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps, backend=self.backend)

    def extra_repr(self) -> str:
        return f"{self.hidden}, eps={self.eps}" + ("" if self.bias is not None else ", bias=False")


class AddLayerNorm(LayerNorm):
    """Computes the post-LN step LN(residual + dropout(x + bias)) (Vaswani et al. 2017, sections 3.1 and 5.4).

    Shapes: x and residual (..., E) -> (..., E). The bias is that of the linear layer that made x, and an argument of
    the call: see `return_bias` of `SelfAttention` and `MLP`. With `return_sum` the result is (y, sum), for pre-LN
    models. With keep_sum=False no sum is kept for the backward, which uses the output instead (see
    `fastlm.add_layer_norm`).
    """

    dropout_sites = 1

    def __init__(
        self,
        hidden: int,
        *,
        dropout: float = 0.0,
        eps: float = 1e-5,
        return_sum: bool = False,
        keep_sum: bool = True,
        backend: str = "auto",
        **factory: Any,
    ):
        super().__init__(hidden, eps=eps, backend=backend, **factory)
        self.dropout, self.return_sum, self.keep_sum = _checked_dropout(self, dropout), return_sum, keep_sum

    def forward(
        self,
        x: Tensor,
        residual: Tensor,
        *,
        bias: Tensor | None = None,
        seed: Tensor | None = None,
        first_row: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Applies the step; `bias` (E,) is added to x before dropout.

        `seed`: one int64; `first_row`: as in `fastlm.add_layer_norm`.
        """
        return ops.add_layer_norm(
            x,
            residual,
            self.weight,
            self.bias,
            bias=bias,
            **_dropout(self, self.dropout, seed, x.device, first_row=first_row),
            eps=self.eps,
            return_sum=self.return_sum,
            keep_sum=self.keep_sum,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, dropout={self.dropout}" + (", return_sum=True" if self.return_sum else "")
        return text + ("" if self.keep_sum else ", keep_sum=False")


class GELULayerNorm(LayerNorm):
    """Computes LN(GELU(x + bias)), the transform of BERT's masked-LM head; the bias is an argument of the call.

    Shapes: x (..., E) -> (..., E). `approximate` is "tanh" (both papers' code) or "none" (erf).
    """

    def __init__(
        self, hidden: int, *, approximate: str = "tanh", eps: float = 1e-5, backend: str = "auto", **factory: Any
    ):
        super().__init__(hidden, eps=eps, backend=backend, **factory)
        self.approximate = _checked_gelu(self, approximate)

    def forward(self, x: Tensor, *, bias: Tensor | None = None) -> Tensor:
        options = {"approximate": self.approximate, "eps": self.eps, "backend": self.backend}
        return ops.gelu_layer_norm(x, self.weight, self.bias, bias=bias, **options)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, approximate={self.approximate!r}"


class LayerNormGELU(LayerNorm):
    """Computes GELU(LN(x)). Shapes: x (..., E) -> (..., E). `approximate` is "tanh" or "none" (erf)."""

    def __init__(
        self, hidden: int, *, approximate: str = "tanh", eps: float = 1e-5, backend: str = "auto", **factory: Any
    ):
        super().__init__(hidden, eps=eps, backend=backend, **factory)
        self.approximate = _checked_gelu(self, approximate)

    def forward(self, x: Tensor) -> Tensor:
        options = {"approximate": self.approximate, "eps": self.eps, "backend": self.backend}
        return ops.layer_norm_gelu(x, self.weight, self.bias, **options)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, approximate={self.approximate!r}"


class BiasGELU(nn.Module):
    """Computes GELU(x + bias). Shapes: x (..., F) -> (..., F). Parameter: bias (F,), initially zero."""

    def __init__(self, features: int, *, approximate: str = "tanh", backend: str = "auto", **factory: Any):
        super().__init__()
        self.features = _checks.checked_size("BiasGELU", "features", features)
        self.approximate, self.backend = _checked_gelu(self, approximate), checked_name(backend)
        self.bias = nn.Parameter(torch.zeros(features, **factory))

    def forward(self, x: Tensor) -> Tensor:
        return ops.bias_gelu(x, self.bias, approximate=self.approximate, backend=self.backend)

    def extra_repr(self) -> str:
        return f"{self.features}, approximate={self.approximate!r}"


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
        self.approximate, self.return_bias = _checked_gelu(self, approximate), return_bias
        self.backend = checked_name(backend)
        self.up = nn.Linear(hidden, intermediate, **factory)
        self.down = nn.Linear(intermediate, hidden, **factory)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = F.linear(x, self.up.weight)
        h = ops.bias_gelu(h, self.up.bias, approximate=self.approximate, backend=self.backend)
        return _project(self.down, h, self.return_bias)

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
        self.heads, self.causal, self.dropout = heads, causal, _checked_dropout(self, dropout)
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
            **_dropout(self, self.dropout, seed, x.device, first_sequence=first_sequence),
            backend=self.backend,
        )
        return _project(self.out, o.flatten(-2), self.return_bias)

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
        self.dropout, self.backend = _checked_dropout(self, dropout), checked_name(backend)
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
            **_dropout(self, self.dropout, seed, tokens.device, first_row=first_row),
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
        self.dropout, self.backend = _checked_dropout(self, dropout), checked_name(backend)

    def forward(self, x: Tensor, *, seed: Tensor | None = None, first_row: Tensor | None = None) -> Tensor:
        """Applies dropout; `seed`: one int64; `first_row`: as in `fastlm.add_layer_norm`."""
        dropout = _dropout(self, self.dropout, seed, x.device, first_row=first_row)
        if not dropout:
            return x
        # The embedding's op without a layer norm is a gather and dropout: here each row is gathered once, in order.
        table = x.flatten(0, -2)
        rows = torch.arange(table.shape[0], device=x.device)
        return ops.embedding_layer_norm(rows, table, **dropout, backend=self.backend).view(x.shape)

    def extra_repr(self) -> str:
        return f"{self.dropout}"


class LinearCrossEntropy(nn.Module):
    """Computes the cross-entropy of softmax(x weight^T + bias) without ever holding the logits.

    Shapes: x (..., E), weight (V, E), targets (...) int64 -> a scalar, or (...) for reduction "none"; float32
    (float64 for float64). It has no parameters of its own, so the weight may be tied to an embedding. If the weight has
    an attribute `main_grad` (V, E) float32, its gradient is added there, and `weight.grad` does not change.
    """

    def __init__(
        self,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        backend: str = "auto",
    ):
        super().__init__()
        checked_options(
            "LinearCrossEntropy",
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
        )
        self.ignore_index, self.reduction, self.backend = ignore_index, reduction, checked_name(backend)
        self.label_smoothing, self.z_loss = label_smoothing, z_loss

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        *,
        bias: Tensor | None = None,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """Returns the loss; `bias` (V,), `row_weights` (...) float32: the weight of each row in the loss."""
        return ops.linear_cross_entropy(
            x,
            weight,
            targets,
            bias=bias,
            row_weights=row_weights,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            main_grad=getattr(weight, "main_grad", None),
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return (
            f"reduction={self.reduction!r}, ignore_index={self.ignore_index}, "
            f"label_smoothing={self.label_smoothing}, z_loss={self.z_loss}"
        )


def _checked_dropout(module: nn.Module, dropout: float) -> float:
    """Returns the probability. Raises TypeError or ValueError if it cannot be applied."""
    name = type(module).__name__
    dropout = _checks.as_number(name, "dropout", dropout)
    keep_count(dropout, f"{name}: dropout")
    return dropout


def _checked_gelu(module: nn.Module, approximate: str) -> str:
    """Returns the form of the GELU. Raises ValueError if there is no such form."""
    _checks.check_approximation(type(module).__name__, approximate)
    return approximate


def _dropout(
    module: nn.Module, p: float, seed: Tensor | None, device: torch.device, **first: Tensor | None
) -> dict[str, Any]:
    """Returns the dropout arguments of an op: none outside training, and a drawn seed if none is given."""
    if p == 0.0 or not module.training:
        return {}
    return {"dropout_p": p, "seed": draw_seeds(1, device) if seed is None else seed, **first}


def _project(linear: nn.Linear, x: Tensor, return_bias: bool) -> Tensor | tuple[Tensor, Tensor]:
    return (F.linear(x, linear.weight), linear.bias) if return_bias else linear(x)
