"""GPT-1: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training".

A decoder of post-LN blocks: learned positions, tanh GELU, dropout on the embedding sum, on attention's probabilities
and before each residual; no layer norm after the embedding or after the last block; the head is the word embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlm.models.base import SITES_PER_BLOCK, Model, ModelConfig
from fastlm.nn import MLP, AddLayerNorm, EmbeddingLayerNorm, LinearCrossEntropy, SelfAttention


@dataclass(frozen=True)
class GPT1Config(ModelConfig):
    """Section 4.1, "Model specifications"; the vocabulary is 40,000 merges and the 478 symbols they start from."""

    model_type: ClassVar[str] = "gpt1"

    vocab_size: int = 40478

    def flops_per_token(self, sequence_length: int) -> int:
        """Floating-point operations a token of a training step: 6 a weight, and causal attention's.

        6 L (4 E^2 + 2 E I) + 6 L 2 E (S + 1) / 2 + 6 V E: blocks' weights; scores and context, where a query sees
        (S + 1) / 2 keys on average; head. Look-ups, layer norms, GELU and softmax count nothing.
        """
        return self.block_flops_per_token((sequence_length + 1) / 2) + 6 * self.vocab_size * self.hidden


PRESETS = {
    "gpt1": GPT1Config(),
    # Initialised wider, as 0.02 sqrt(768 / 256): a matrix of width 256 then passes on as much as BASE's of 768.
    "gpt1_small": GPT1Config(
        vocab_size=4096, context=128, layers=4, hidden=256, heads=4, intermediate=1024, initializer_range=0.035
    ),
    "gpt1_tiny": GPT1Config(vocab_size=512, context=64, layers=2, hidden=64, heads=2, intermediate=256),
}


class Block(nn.Module):
    """h = LN(x + dropout(attention(x))); LN(h + dropout(MLP(h))). Shapes: x (B, S, E) -> (B, S, E)."""

    def __init__(self, config: GPT1Config, backend: str):
        super().__init__()
        norm = {"dropout": config.dropout, "eps": config.eps, "backend": backend}
        fused = {"return_bias": True, "backend": backend}
        self.attention = SelfAttention(
            config.hidden, config.heads, causal=True, dropout=config.attention_dropout, **fused
        )
        self.attention_norm = AddLayerNorm(config.hidden, **norm)
        self.mlp = MLP(config.hidden, config.intermediate, approximate="tanh", **fused)
        self.mlp_norm = AddLayerNorm(config.hidden, **norm)

    def forward(self, x: Tensor, lengths: Tensor | None, seeds: Sequence[Tensor | None]) -> Tensor:
        a, bias = self.attention(x, lengths=lengths, seed=seeds[0])
        h = self.attention_norm(a, x, bias=bias, seed=seeds[1])
        m, bias = self.mlp(h)
        return self.mlp_norm(m, h, bias=bias, seed=seeds[2])


class GPT1(Model):
    """The language model, initialised as N(0, 0.02) with zero biases.

    Args:
        config: see GPT1Config; PRESETS has the paper's and small ones.
        backend: what serves the ops: "auto", "reference", "triton" or "cuda".
    """

    config_class = GPT1Config

    def __init__(self, config: GPT1Config, backend: str = "auto"):
        super().__init__(config, backend)
        self.embedding = EmbeddingLayerNorm(
            config.vocab_size,
            config.context,
            config.hidden,
            layer_norm=False,
            dropout=config.embedding_dropout,
            backend=backend,
        )
        self.blocks = nn.ModuleList(Block(config, backend) for _ in range(config.layers))
        self.loss = LinearCrossEntropy(backend=backend)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Every matrix N(0, 0.02), whatever its depth; biases 0, layer norms the identity."""
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=self.config.initializer_range)
            elif name.endswith(".bias"):
                nn.init.zeros_(p)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """The mean loss (equation 1) if targets are given, else the logits.

        Args:
            tokens: (B, S) int64, S at most the context.
            targets: (B, S) int64, the token that follows each, -100 where none is asked for.
            lengths: (B,) int32, where sequences end that are padded on the right.
            seeds: (1 + 3 * layers,) int64, one a dropout site; in training they are drawn where not given.

        Returns:
            A float32 scalar (float64 for float64 weights), or (B, S, V) in the dtype of the weights or autocast's.

        Raises:
            TypeError, ValueError: an argument's dtype, shape, device or (on the CPU) range is wrong.
        """
        self._check(tokens, targets, lengths)
        x = self._encode(tokens, lengths, seeds)
        if targets is None:
            return F.linear(x, self.embedding.word)
        return self.loss(x, self.embedding.word, targets)

    def hidden_states(self, tokens: Tensor, lengths: Tensor | None = None, *, seeds: Tensor | None = None) -> Tensor:
        """The last block's output (B, S, E); arguments as in `forward`."""
        self._check(tokens, None, lengths)
        return self._encode(tokens, lengths, seeds)

    def _encode(self, tokens: Tensor, lengths: Tensor | None, seeds: Tensor | None) -> Tensor:
        embedding_seed, *block_seeds = self.site_seeds(seeds)
        x = self.embedding(tokens, seed=embedding_seed)
        for i, block in enumerate(self.blocks):
            x = block(x, lengths, block_seeds[SITES_PER_BLOCK * i : SITES_PER_BLOCK * (i + 1)])
        return x

    def _check(self, tokens: Tensor, targets: Tensor | None, lengths: Tensor | None) -> None:
        self.check_tokens(tokens)
        self.check_ids("targets", targets, tokens.shape, self.config.vocab_size, ignore=-100)
        self.check_ids("lengths", lengths, tokens.shape[:1], tokens.shape[1] + 1, dtype=torch.int32)
