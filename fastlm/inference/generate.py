"""Generates text, by a model with the head "lm": `fastlm generate RUN --prompt "..."`."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from fastlm.data.tokenizer import Tokenizer
from fastlm.inference.load import load_trained

MIN_TEMPERATURE = 1e-6  # logits divided by a smaller number would overflow float32


def filter_logits(logits: Tensor, *, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Returns logits (..., V) to sample from: divided by the temperature, and -inf for tokens that may not be drawn.

    top_k keeps the k likeliest tokens, and all that tie with the last of them. top_p (Holtzman et al. 2020) then keeps
    the smallest set of the likeliest whose probability, renormalised after top_k, reaches p. temperature must be
    above 0.
    """
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        edge = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < edge, float("-inf"))
    if top_p is not None and top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(dim=-1)
        reached = probability.cumsum(dim=-1) - probability >= top_p  # the likelier tokens already reach top_p
        dropped = torch.zeros_like(reached).scatter(-1, index, reached)
        logits = logits.masked_fill(dropped, float("-inf"))
    return logits


@torch.no_grad()
def continue_tokens(
    model: torch.nn.Module,
    tokens: list[int],
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> list[int]:
    """Samples `count` tokens after `tokens` (at least one); the model sees the last `context` of all tokens so far.

    temperature=0 takes the likeliest token each time. generator: a CPU generator, since sampling runs on the CPU.
    """
    check_sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    if not tokens:
        raise ValueError("tokens: at least one to start from expected, got none")
    device = next(model.parameters()).device
    model.eval()
    drawn = list(tokens)
    for _ in range(count):
        window = torch.tensor([drawn[-model.config.context :]], device=device)
        logits = model.logits("lm", model(window).hidden[:, -1:])[0, -1].cpu()
        if temperature == 0:
            drawn.append(int(logits.argmax()))
        else:
            logits = filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p)
            drawn.append(int(torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)))
    return drawn[len(tokens) :]


def check_sampling(*, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raises ValueError for an option out of range."""
    if temperature != 0 and not MIN_TEMPERATURE <= temperature < math.inf:
        raise ValueError(
            f"temperature: 0 (which takes the likeliest token) or at least {MIN_TEMPERATURE:g} expected, "
            f"got {temperature}"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: at least 1 expected, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: above 0 and at most 1 expected, got {top_p}")


def generate_text(model: torch.nn.Module, tokenizer: Tokenizer, prompt: str, count: int, **sampling) -> str:
    """Returns the prompt and `count` sampled tokens as text; `sampling`: the options of `continue_tokens`."""
    tokens = tokenizer.encode(prompt)
    if not tokens:
        raise ValueError(f"prompt: at least one token expected, got {prompt!r}")
    return tokenizer.decode(tokens + continue_tokens(model, tokens, count, **sampling))


def generate(
    run: str | Path,
    prompt: str,
    *,
    tokens: int = 100,
    temperature: float = 0.8,
    top_k: int | None = 40,
    top_p: float | None = None,
    seed: int = 0,
    device: str = "auto",
) -> str:
    """Returns `prompt` and the text that the model of a run folder writes after it.

    On the CPU the same seed gives the same text. Raises ValueError for an option out of range, and the errors of
    `load_trained`.
    """
    check_sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    if tokens < 1:
        raise ValueError(f"tokens: at least 1 expected, got {tokens}")
    model, tokenizer = load_trained(run, device, head="lm")
    generator = torch.Generator().manual_seed(seed)
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
    return generate_text(model, tokenizer, prompt, tokens, **sampling)
