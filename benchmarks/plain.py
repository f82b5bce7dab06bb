"""GPT-1 and BERT as a torch user would write them: plain modules, attention by SDPA, meant for torch.compile.

Parameters have the same names as in fastlm.models, so that weights can be copied and gradients compared.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlm.models import BERTConfig, GPT1Config

Config = GPT1Config | BERTConfig


class Attention(nn.Module):
    def __init__(self, config: Config, causal: bool):
        super().__init__()
        self.heads, self.dropout, self.causal = config.heads, config.attention_dropout, causal
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden)
        self.out = nn.Linear(config.hidden, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        p = self.dropout if self.training else 0.0
        o = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=self.causal)
        return self.out(o.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: Config, approximate: str):
        super().__init__()
        self.approximate = approximate
        self.up = nn.Linear(config.hidden, config.intermediate)
        self.down = nn.Linear(config.intermediate, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate=self.approximate))


class Block(nn.Module):
    def __init__(self, config: Config, *, causal: bool, approximate: str):
        super().__init__()
        self.attention, self.mlp = Attention(config, causal), MLP(config, approximate)
        self.attention_norm = nn.LayerNorm(config.hidden, eps=config.eps)
        self.mlp_norm = nn.LayerNorm(config.hidden, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = self.attention_norm(x + self.dropout(self.attention(x)))
        return self.mlp_norm(h + self.dropout(self.mlp(h)))


class Embedding(nn.Module):
    def __init__(self, config: Config, segments: int):
        super().__init__()
        self.word = nn.Parameter(torch.empty(config.vocab_size, config.hidden))
        self.position = nn.Parameter(torch.empty(config.context, config.hidden))
        self.segment = nn.Parameter(torch.empty(segments, config.hidden)) if segments else None
        self.norm = nn.LayerNorm(config.hidden, eps=config.eps) if segments else None
        self.dropout = nn.Dropout(config.embedding_dropout)

    def forward(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        x = F.embedding(tokens, self.word) + self.position[: tokens.shape[1]]
        if segments is not None:
            x = self.norm(x + F.embedding(segments, self.segment))
        return self.dropout(x)


class PlainGPT1(nn.Module):
    def __init__(self, config: GPT1Config):
        super().__init__()
        self.embedding = Embedding(config, segments=0)
        self.blocks = nn.ModuleList(Block(config, causal=True, approximate="tanh") for _ in range(config.layers))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(F.linear(x, self.embedding.word).flatten(0, 1).float(), targets.flatten())


class MaskedLMHead(nn.Module):
    def __init__(self, config: BERTConfig):
        super().__init__()
        self.approximate = config.gelu
        self.dense = nn.Linear(config.hidden, config.hidden)
        self.norm = nn.LayerNorm(config.hidden, eps=config.eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(x), approximate=self.approximate))


class PlainBERT(nn.Module):
    """Builds BERT for pretraining. As in fastlm, the masked-LM head runs only at the predicted positions."""

    def __init__(self, config: BERTConfig):
        super().__init__()
        self.embedding = Embedding(config, config.segments)
        self.blocks = nn.ModuleList(Block(config, causal=False, approximate=config.gelu) for _ in range(config.layers))
        self.pooler = nn.Linear(config.hidden, config.hidden)
        self.mlm = MaskedLMHead(config)
        self.nsp = nn.Linear(config.hidden, 2)

    def forward(
        self, tokens: Tensor, segments: Tensor, mlm_positions: Tensor, mlm_targets: Tensor, labels: Tensor
    ) -> Tensor:
        x = self.embedding(tokens, segments)
        for block in self.blocks:
            x = block(x)
        masked = x.gather(1, mlm_positions[..., None].expand(-1, -1, x.shape[-1]))
        words = F.linear(self.mlm(masked), self.embedding.word, self.mlm.bias).flatten(0, 1).float()
        next_sentence = self.nsp(torch.tanh(self.pooler(x[:, 0]))).float()
        return F.cross_entropy(words, mlm_targets.flatten()) + F.cross_entropy(next_sentence, labels)


def plain(config: Config) -> nn.Module:
    """Builds the plain model of a configuration."""
    return PlainGPT1(config) if isinstance(config, GPT1Config) else PlainBERT(config)
