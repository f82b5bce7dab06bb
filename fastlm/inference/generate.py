"""Text from a model with the head "lm": `fastlm generate RUN --prompt "..."`."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from fastlm.data.tokenizer import Tokenizer
from fastlm.inference.load import load_trained

SMALLEST_TEMPERATURE = 1e-6  # logits divided by less would leave float32


def filter_logits(logits: Tensor, *, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Log-probabilities (..., V), up to a constant, of the tokens that may be drawn; -inf for the others.

    top_k keeps the k likeliest; top_p (Holtzman et al. 2020) then keeps the smallest set of the likeliest whose
    probability, among those left, reaches p. Ties at top_k's edge are all kept. temperature must be above 0.
    """
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        edge = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < edge, float("-inf"))
    if top_p is not None and top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(dim=-1)
        reached = probability.cumsum(dim=-1) - probability >= top_p  # the ones before it suffice
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
    """`count` tokens that the model draws after `tokens` (at least one); it sees the last `context` of them.

    temperature 0 takes the likeliest each time. generator: on the CPU, where the draws are made.
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
    if temperature != 0 and not SMALLEST_TEMPERATURE <= temperature < math.inf:
        raise ValueError(
            f"temperature: 0 (which takes the likeliest token) or at least {SMALLEST_TEMPERATURE:g} expected, "
            f"got {temperature}"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: at least 1 expected, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: above 0 and at most 1 expected, got {top_p}")


def generate_text(model: torch.nn.Module, tokenizer: Tokenizer, prompt: str, count: int, **sampling) -> str:
    """The prompt and `count` tokens that the model draws after it, as the tokenizer decodes them."""
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
    """Text that the model of a run folder writes after `prompt`; the same seed gives the same text on the CPU."""
    check_sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    if tokens < 1:
        raise ValueError(f"tokens: at least 1 expected, got {tokens}")
    model, tokenizer = load_trained(run, device, head="lm")
    generator = torch.Generator().manual_seed(seed)
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
    return generate_text(model, tokenizer, prompt, tokens, **sampling)
