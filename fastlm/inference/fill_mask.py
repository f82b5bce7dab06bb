"""Words for the [MASK]s of a text, from a model with the head "mlm": `fastlm fill-mask RUN "text with [MASK]"`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from fastlm.data.tokenizer import Tokenizer
from fastlm.inference.load import load_trained


class Guess(NamedTuple):
    token: str
    probability: float


@torch.no_grad()
def fill(model: torch.nn.Module, tokenizer: Tokenizer, tokens: list[int], top: int = 5) -> list[list[Guess]]:
    """For each [MASK] among `tokens` ([CLS] ... [SEP]), in order, the `top` likeliest tokens."""
    mask = tokenizer.id("[MASK]")
    device = next(model.parameters()).device
    places = [i for i, token in enumerate(tokens) if token == mask]
    model.eval()
    batch = torch.tensor([tokens], device=device)
    logits = model.logits("mlm", model(batch).hidden, torch.tensor([places], device=device))[0]
    best = logits.float().softmax(dim=-1).topk(top, dim=-1)
    return [
        [Guess(tokenizer.decode([i]), p) for i, p in zip(ids, probabilities, strict=True)]
        for ids, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def fill_mask(run: str | Path, text: str, *, top: int = 5, device: str = "auto") -> list[list[Guess]]:
    """For each [MASK] of `text`, in order, the `top` likeliest tokens and their probabilities."""
    if top < 1:
        raise ValueError(f"top: at least 1 expected, got {top}")
    if "[MASK]" not in text:
        raise ValueError(f"text: at least one [MASK] expected, got {text!r}")
    model, tokenizer = load_trained(run, device, head="mlm")
    if top > tokenizer.vocab_size:
        raise ValueError(f"top: at most the {tokenizer.vocab_size} entries of the vocabulary expected, got {top}")
    tokens = [tokenizer.id("[CLS]"), *tokenizer.encode(text), tokenizer.id("[SEP]")]
    if len(tokens) > model.config.context:
        raise ValueError(
            f"text: at most {model.config.context} tokens with [CLS] and [SEP] expected, got {len(tokens)}"
        )
    return fill(model, tokenizer, tokens, top)
