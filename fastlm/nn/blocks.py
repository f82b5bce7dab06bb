"""Transformer blocks: attention and MLP with their residuals."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastlm.nn.layer_norm import AddLayerNorm
from fastlm.nn.layers import MLP, SelfAttention
from fastlm.nn.layout import Layout


class PostLNBlock(nn.Module):
    """Computes h = LN(x + dropout(attention(x))), then LN(h + dropout(MLP(h))) (Vaswani et al. 2017; GPT-1; BERT).

    Shapes: x (B, S, E) -> (B, S, E), or packed rows (T, E) -> (T, E). A call uses `dropout_sites` seeds: one for
    attention, one per residual.

    Args:
        hidden, heads, intermediate: E, H, and the width I of the MLP.
        causal: whether a query sees only the keys up to its own position.
        dropout, attention_dropout: probabilities for the residual branches and for attention's probabilities.
        gelu: "tanh" or "none" (the exact erf form).
        keep_sum: whether the residual sums are kept for the backward (see `fastlm.add_layer_norm`).
    """

    dropout_sites = 3

    def __init__(
        self,
        hidden: int,
        heads: int,
        intermediate: int,
        *,
        causal: bool,
        dropout: float,
        attention_dropout: float,
        gelu: str = "tanh",
        eps: float = 1e-5,
        keep_sum: bool = True,
        backend: str = "auto",
    ):
        super().__init__()
        norm = {"dropout": dropout, "eps": eps, "keep_sum": keep_sum, "backend": backend}
        fused = {"return_bias": True, "backend": backend}
        self.attention = SelfAttention(hidden, heads, causal=causal, dropout=attention_dropout, **fused)
        self.attention_norm = AddLayerNorm(hidden, **norm)
        self.mlp = MLP(hidden, intermediate, approximate=gelu, **fused)
        self.mlp_norm = AddLayerNorm(hidden, **norm)

    def forward(self, x: Tensor, layout: Layout, seeds: Sequence[Tensor | None]) -> Tensor:
        """Applies the block; `layout`: where the sequences lie; `seeds`: one int64 or None per dropout site."""
        a, bias = self.attention(
            x,
            lengths=layout.lengths,
            cu_seqlens=layout.cu_seqlens,
            max_seqlen=layout.max_seqlen,
            seed=seeds[0],
            first_sequence=layout.first_sequence,
        )
        h = self.attention_norm(a, x, bias=bias, seed=seeds[1], first_row=layout.first_row)
        m, bias = self.mlp(h)
        return self.mlp_norm(m, h, bias=bias, seed=seeds[2], first_row=layout.first_row)
