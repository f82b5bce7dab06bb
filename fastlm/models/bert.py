"""BERT: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding".

An encoder of post-LN blocks over word, position and segment embeddings, with dropout on the normalised embedding sum,
on attention's probabilities and before each residual. Pretraining has two heads: masked tokens, computed only at the
predicted positions, and next sentence, from a tanh pooling of [CLS].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastlm.models.base import Model
from fastlm.models.configs import BERTConfig
from fastlm.nn import EmbeddingLayerNorm, Head, Layout, MaskedLMHead, NextSentenceHead, PostLNBlock


class BERT(Model):
    """Builds the encoder. Matrices start as N(0, initializer_range) truncated at two deviations, biases as 0.

    Args:
        config: see BERTConfig; `fastlm.models.PRESETS` has BASE, LARGE and small ones.
        heads: by name; None gives {"mlm": MaskedLMHead, "nsp": NextSentenceHead}, whose targets are "mlm_positions" and
            "mlm_targets" (B, P) int64, and "next_sentence_labels" (B,) int64.
        backend: which backend runs the ops: "auto", "reference", "cpu", "triton" or "cuda".
        keep_sum: whether residual sums are kept for the backward (see `fastlm.add_layer_norm`).
    """

    config_class = BERTConfig
    takes_segments = True

    def __init__(
        self,
        config: BERTConfig,
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
            segments=config.segments,
            dropout=config.embedding_dropout,
            eps=config.eps,
            backend=backend,
        )
        self.blocks = nn.ModuleList(
            PostLNBlock(
                config.hidden,
                config.heads,
                config.intermediate,
                causal=False,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                gelu=config.gelu,
                eps=config.eps,
                keep_sum=keep_sum,
                backend=backend,
            )
            for _ in range(config.layers)
        )
        self.pooler = nn.Linear(config.hidden, config.hidden)
        self.add_heads(heads)
        self.initialise(self)

    def pretraining_heads(self) -> dict[str, Head]:
        config, backend = self.config, self.backend
        masked = MaskedLMHead(config.vocab_size, config.hidden, gelu=config.gelu, eps=config.eps, backend=backend)
        return {"mlm": masked, "nsp": NextSentenceHead(config.hidden, backend=backend)}

    def embed(self, tokens: Tensor, segments: Tensor | None, layout: Layout, seed: Tensor | None) -> Tensor:
        segments = torch.zeros_like(tokens) if segments is None else segments
        where = {"position_ids": layout.position_ids(tokens.shape[0]), "first_row": layout.first_row}
        return self.embedding(tokens, segments, seed=seed, **where)

    def pooled(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Pools sequences for heads on whole sequences: tanh of a linear layer on [CLS] (section 3.1, task 2).

        rows: the rows of [CLS], as in `Model.pooled`; None: the first of each sequence of padded states (B, S, E).
        """
        return torch.tanh(self.pooler(hidden[:, 0] if rows is None else super().pooled(hidden, rows)))

    @torch.no_grad()
    def initialise(self, module: nn.Module) -> None:
        """Initialises as the original truncated_normal_initializer: values beyond two deviations are drawn again."""
        std = self.config.initializer_range
        for name, p in module.named_parameters():
            if p.ndim == 2:
                nn.init.trunc_normal_(p, std=std, a=-2 * std, b=2 * std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
