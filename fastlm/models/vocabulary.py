"""New tokens for a trained model, such as GPT-1's start, delimiter and extract (section 3.3)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from fastlm.models.base import Model


@torch.no_grad()
def grow_vocabulary(model: Model, count: int) -> range:
    """Adds `count` tokens behind a model's vocabulary, in place, and returns their ids.

    Their rows of the word embedding are drawn by torch's default generator, on the CPU, as those of a fresh model of
    the class: N(0, initializer_range), which BERT truncates. A head with an entry per token gets entries, too. The
    word embedding becomes a new parameter, so make the optimizer afterwards.

    Raises ValueError if count is not an integer of at least 1.
    """
    if type(count) is not int or count < 1:
        raise ValueError(f"count must be an integer of at least 1, got {count!r}")
    word, old = model.embedding.word, model.config.vocab_size
    fresh = nn.Embedding(count, word.shape[1], device="cpu", dtype=torch.float32)
    model.initialise(fresh)
    model.embedding.word = nn.Parameter(torch.cat([word, fresh.weight.to(word)]), word.requires_grad)
    model.config = replace(model.config, vocab_size=old + count)
    for head in model.heads.values():
        head.grow_vocabulary(count)
    return range(old, old + count)
