"""BERT: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding".

An encoder of post-LN blocks over word, position and segment embeddings, with dropout on the normalised embedding sum,
on attention's probabilities and before each residual. Two heads: masked tokens (dense, GELU, layer norm, the word
embedding, bias), computed at the predicted positions alone, and next sentence, from a tanh pooling of [CLS].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlm.models.base import SITES_PER_BLOCK, Model, ModelConfig
from fastlm.nn import MLP, AddLayerNorm, EmbeddingLayerNorm, GELULayerNorm, LinearCrossEntropy, SelfAttention


@dataclass(frozen=True)
class BERTConfig(ModelConfig):
    """Section 3, "Model architecture", BASE. `segments` kinds of segment; `gelu` is "tanh", as in the original code, or
    "none" for the exact erf form of Hugging Face's weights."""

    model_type: ClassVar[str] = "bert"

    vocab_size: int = 30522
    eps: float = 1e-12
    segments: int = 2
    gelu: str = "tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gelu not in ("tanh", "none"):
            raise ValueError(f"gelu must be 'tanh' or 'none' (the exact erf), got {self.gelu!r}")

    def flops_per_token(self, sequence_length: int, predicted_fraction: float = 0.15) -> int:
        """Floating-point operations a token of a training step: 6 a weight that it meets, and attention's.

        6 L (4 E^2 + 2 E I) + 6 L 2 E S + 6 f (E^2 + V E): blocks' weights; scores and context; the masked-LM head,
        which the fraction f of the positions goes through. The pooler and the next-sentence head, one position a
        sequence, look-ups, layer norms, GELU and softmax count nothing.
        """
        head = self.hidden**2 + self.vocab_size * self.hidden
        return self.block_flops_per_token(sequence_length) + round(6 * predicted_fraction * head)


PRESETS = {
    "bert_base": BERTConfig(),
    "bert_large": BERTConfig(layers=24, hidden=1024, heads=16, intermediate=4096),
    # Initialised wider, as 0.02 sqrt(768 / 256): a matrix of width 256 then passes on as much as BASE's of 768.
    "bert_small": BERTConfig(
        vocab_size=4096, context=64, layers=4, hidden=256, heads=4, intermediate=1024, initializer_range=0.035
    ),
    "bert_tiny": BERTConfig(vocab_size=512, context=64, layers=2, hidden=64, heads=2, intermediate=256),
}


class BERTOutput(NamedTuple):
    """What `BERT.forward` returns: the losses are None where their targets were not given."""

    loss: Tensor | None  # the sum of those below
    mlm_loss: Tensor | None  # mean over the predicted positions
    nsp_loss: Tensor | None  # mean over the sequences
    hidden: Tensor  # (B, S, E); rows past a sequence's length mean nothing
    pooled: Tensor  # (B, E)


class Block(nn.Module):
    """h = LN(x + dropout(attention(x))); LN(h + dropout(MLP(h))). Shapes: x (B, S, E) -> (B, S, E)."""

    def __init__(self, config: BERTConfig, backend: str):
        super().__init__()
        norm = {"dropout": config.dropout, "eps": config.eps, "backend": backend}
        fused = {"return_bias": True, "backend": backend}
        self.attention = SelfAttention(config.hidden, config.heads, dropout=config.attention_dropout, **fused)
        self.attention_norm = AddLayerNorm(config.hidden, **norm)
        self.mlp = MLP(config.hidden, config.intermediate, approximate=config.gelu, **fused)
        self.mlp_norm = AddLayerNorm(config.hidden, **norm)

    def forward(self, x: Tensor, lengths: Tensor | None, seeds: Sequence[Tensor | None]) -> Tensor:
        a, bias = self.attention(x, lengths=lengths, seed=seeds[0])
        h = self.attention_norm(a, x, bias=bias, seed=seeds[1])
        m, bias = self.mlp(h)
        return self.mlp_norm(m, h, bias=bias, seed=seeds[2])


class MaskedLMHead(nn.Module):
    """LN(GELU(dense(x))), ready for the decoder, and the decoder's bias; its weight is the word embedding."""

    def __init__(self, config: BERTConfig, backend: str):
        super().__init__()
        self.dense = nn.Linear(config.hidden, config.hidden)
        self.norm = GELULayerNorm(config.hidden, approximate=config.gelu, eps=config.eps, backend=backend)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.linear(x, self.dense.weight), bias=self.dense.bias)


class BERT(Model):
    """The encoder with both pretraining heads, initialised as N(0, 0.02) truncated at two deviations, with zero biases.

    Args:
        config: see BERTConfig; PRESETS has BASE, LARGE and small ones.
        backend: what serves the ops: "auto", "reference", "triton" or "cuda".
    """

    config_class = BERTConfig

    def __init__(self, config: BERTConfig, backend: str = "auto"):
        super().__init__(config, backend)
        self.embedding = EmbeddingLayerNorm(
            config.vocab_size,
            config.context,
            config.hidden,
            segments=config.segments,
            dropout=config.embedding_dropout,
            eps=config.eps,
            backend=backend,
        )
        self.blocks = nn.ModuleList(Block(config, backend) for _ in range(config.layers))
        self.pooler = nn.Linear(config.hidden, config.hidden)
        self.mlm = MaskedLMHead(config, backend)
        self.nsp = nn.Linear(config.hidden, 2)
        self.loss = LinearCrossEntropy(backend=backend)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """The original code's truncated_normal_initializer: what falls beyond two deviations is drawn again."""
        std = self.config.initializer_range
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.trunc_normal_(p, std=std, a=-2 * std, b=2 * std)
            elif name.endswith(".bias"):
                nn.init.zeros_(p)

    def forward(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        mlm_positions: Tensor | None = None,
        mlm_targets: Tensor | None = None,
        next_sentence_labels: Tensor | None = None,
        seeds: Tensor | None = None,
    ) -> BERTOutput:
        """Hidden states and pooled [CLS], and the losses (section 3.1) whose targets are given.

        Args:
            tokens: (B, S) int64, S at most the context, padded on the right.
            segments: (B, S) int64, by default 0 everywhere.
            lengths: (B,) int32, valid tokens of each sequence, by default S.
            mlm_positions, mlm_targets: (B, P) int64, where to predict and what; padded with any position in [0, S)
                and target -100, so that P is the same in every batch.
            next_sentence_labels: (B,) int64, 0 where the second sentence follows the first, else 1.
            seeds: (1 + 3 * layers,) int64, one a dropout site; in training they are drawn where not given.

        Returns:
            BERTOutput; losses are float32 scalars (float64 for float64 weights).

        Raises:
            TypeError, ValueError: an argument's dtype, shape, device or (on the CPU) range is wrong.
        """
        self._check(tokens, segments, lengths, mlm_positions, mlm_targets, next_sentence_labels)
        embedding_seed, *block_seeds = self.site_seeds(seeds)
        segments = torch.zeros_like(tokens) if segments is None else segments
        x = self.embedding(tokens, segments, seed=embedding_seed)
        for i, block in enumerate(self.blocks):
            x = block(x, lengths, block_seeds[SITES_PER_BLOCK * i : SITES_PER_BLOCK * (i + 1)])
        pooled = torch.tanh(self.pooler(x[:, 0]))
        mlm_loss = nsp_loss = None
        if mlm_targets is not None:
            features = self.mlm(_rows_at(x, mlm_positions))
            mlm_loss = self.loss(features, self.embedding.word, mlm_targets, bias=self.mlm.bias)
        if next_sentence_labels is not None:
            nsp_loss = self.loss(pooled, self.nsp.weight, next_sentence_labels, bias=self.nsp.bias)
        losses = [loss for loss in (mlm_loss, nsp_loss) if loss is not None]
        return BERTOutput(sum(losses) if losses else None, mlm_loss, nsp_loss, x, pooled)

    def mlm_logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Masked-LM logits (B, P, V) at `positions` (B, P) int64 of `hidden` (B, S, E)."""
        self.check_ids("positions", positions, (hidden.shape[0], *positions.shape[1:]), hidden.shape[1])
        return F.linear(self.mlm(_rows_at(hidden, positions)), self.embedding.word, self.mlm.bias)

    def nsp_logits(self, pooled: Tensor) -> Tensor:
        """Next-sentence logits (B, 2) of `pooled` (B, E); index 0 is "is next"."""
        return self.nsp(pooled)

    def _check(
        self,
        tokens: Tensor,
        segments: Tensor | None,
        lengths: Tensor | None,
        mlm_positions: Tensor | None,
        mlm_targets: Tensor | None,
        next_sentence_labels: Tensor | None,
    ) -> None:
        self.check_tokens(tokens)
        batch, length = tokens.shape
        self.check_ids("segments", segments, tokens.shape, self.config.segments)
        self.check_ids("lengths", lengths, (batch,), length + 1, dtype=torch.int32)
        self.check_ids("next_sentence_labels", next_sentence_labels, (batch,), 2, ignore=-100)
        if (mlm_positions is None) != (mlm_targets is None):
            raise ValueError("BERT: mlm_positions and mlm_targets go together: give both or neither")
        if mlm_positions is not None:
            if mlm_positions.ndim != 2:
                raise ValueError(f"BERT: mlm_positions must have shape (B, P), got {tuple(mlm_positions.shape)}")
            self.check_ids("mlm_positions", mlm_positions, (batch, mlm_positions.shape[1]), length)
            self.check_ids("mlm_targets", mlm_targets, mlm_positions.shape, self.config.vocab_size, ignore=-100)


def _rows_at(hidden: Tensor, positions: Tensor) -> Tensor:
    """hidden[b, positions[b, p]]: (B, P, E)."""
    batch, length, _ = hidden.shape
    first = torch.arange(batch, device=positions.device) * length
    rows = (positions + first[:, None]).flatten()
    return hidden.flatten(0, 1).index_select(0, rows).unflatten(0, positions.shape)
