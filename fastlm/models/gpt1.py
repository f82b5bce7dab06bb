"""GPT-1: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training".

A decoder of post-LN blocks: learned positions, tanh GELU, dropout on the embedding sum, on attention's probabilities
and before each residual; no layer norm after the embedding or after the last block; the head is the word embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastlm.models.base import Model
from fastlm.models.configs import GPT1Config
from fastlm.nn import CausalLMHead, EmbeddingLayerNorm, Head, Layout, PostLNBlock


class GPT1(Model):
    """Builds the decoder. Matrices start as N(0, initializer_range), biases as 0.

    Args:
        config: see GPT1Config; `fastlm.models.PRESETS` has the paper's and small ones.
        heads: by name; None gives {"lm": CausalLMHead}, the next token, whose targets are "targets" (B, S) int64.
        backend: which backend runs the ops: "auto", "reference", "cpu", "triton" or "cuda".
        keep_sum: whether residual sums are kept for the backward (see `fastlm.add_layer_norm`).
    """

    config_class = GPT1Config

    def __init__(
        self,
        config: GPT1Config,
        heads: Mapping[str, Head] | None = None,
        *,
        backend: str = "auto",
        keep_sum: bool = True,
    ):
        super().__init__(config, backend=backend, keep_sum=keep_sum)
        self.embedding = EmbeddingLayerNorm(
            config.vocab_size,
            config.context,
            config.hidden,
            layer_norm=False,
            dropout=config.embedding_dropout,
            backend=backend,
        )
        self.blocks = nn.ModuleList(
            PostLNBlock(
                config.hidden,
                config.heads,
                config.intermediate,
                causal=True,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                eps=config.eps,
                keep_sum=keep_sum,
                backend=backend,
            )
            for _ in range(config.layers)
        )
        self.add_heads(heads)
        self.initialise(self)

    def pretraining_heads(self) -> dict[str, Head]:
        return {"lm": CausalLMHead(backend=self.backend)}

    def embed(self, tokens: Tensor, segments: Tensor | None, layout: Layout, seed: Tensor | None) -> Tensor:
        where = {"position_ids": layout.position_ids(tokens.shape[0]), "first_row": layout.first_row}
        return self.embedding(tokens, seed=seed, **where)

    @torch.no_grad()
    def initialise(self, module: nn.Module) -> None:
        """Initialises every matrix as N(0, initializer_range), at any depth; biases are 0, layer norms the identity."""
        for name, p in module.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=self.config.initializer_range)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
