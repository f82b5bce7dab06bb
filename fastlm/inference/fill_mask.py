"""Fills the [MASK]s of a text, by a model with the head "mlm": `fastlm fill-mask RUN "text with [MASK]"`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from fastlm.data.tokenizer import Tokenizer
from fastlm.inference.load import check_logits, load_trained


class Guess(NamedTuple):
    """Holds a token, as text, and its probability."""

    token: str
    probability: float


@torch.no_grad()
def fill(model: torch.nn.Module, tokenizer: Tokenizer, tokens: list[int], top: int = 5) -> list[list[Guess]]:
    """Returns the `top` likeliest tokens for each [MASK] in `tokens` ([CLS] ... [SEP]), in order.

    Raises ValueError if a logit is infinite or NaN.
    """
    mask = tokenizer.id("[MASK]")
    device = next(model.parameters()).device
    positions = [i for i, token in enumerate(tokens) if token == mask]
    model.eval()
    batch = torch.tensor([tokens], device=device)
    logits = model.logits("mlm", model(batch).hidden, torch.tensor([positions], device=device))[0]
    best = check_logits(logits.float()).softmax(dim=-1).topk(top, dim=-1)
    return [
        [Guess(tokenizer.decode([i]), p) for i, p in zip(ids, probabilities, strict=True)]
        for ids, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def fill_mask(
    run: str | Path,
    text: str,
    *,
    top: int = 5,
    device: str = "auto",
    notify: Callable[[str], None] = warnings.warn,
) -> list[list[Guess]]:
    """Returns the `top` likeliest tokens for each [MASK] of `text`, in order, by the model of a run folder.

    `notify` gets a sentence on each damaged checkpoint. Raises ValueError for a `top` out of range and for a text
    without [MASK] or too long for the model, and the errors of `fill` and `load_trained`.
    """
    if top < 1:
        raise ValueError(f"top: at least 1 expected, got {top}")
    if "[MASK]" not in text:
        raise ValueError(f"text: at least one [MASK] expected, got {text!r}")
    model, tokenizer = load_trained(run, device, head="mlm", notify=notify)
    if top > tokenizer.vocab_size:
        raise ValueError(f"top: at most the {tokenizer.vocab_size} entries of the vocabulary expected, got {top}")
    tokens = [tokenizer.id("[CLS]"), *tokenizer.encode(text), tokenizer.id("[SEP]")]
    if len(tokens) > model.config.context:
        raise ValueError(
            f"text: at most {model.config.context} tokens with [CLS] and [SEP] expected, got {len(tokens)}"
        )
    return fill(model, tokenizer, tokens, top)
