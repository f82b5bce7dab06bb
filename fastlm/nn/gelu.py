"""GELU, alone and with a bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlm import ops
from fastlm.backends import checked_name
from fastlm.nn._modules import checked_gelu, fall_back
from fastlm.ops import _checks


class GELU(nn.GELU):
    """Computes GELU(x), as `torch.nn.GELU` (Hendrycks & Gimpel 2016, section 2).

    Shapes: x of any shape -> the same. `approximate` is "none" (erf) or "tanh". Under autocast the output has
    autocast's dtype; torch's has the dtype of x.

    Raises:
        TypeError, ValueError: an argument could not be used by any call.
        RuntimeError: the backend asked for cannot serve the call.
    """

    backend = "auto"

    def __init__(self, approximate: str = "none", *, backend: str = "auto"):
        super().__init__(checked_gelu(self, approximate))
        self.backend = checked_name(backend)

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim == 0 or input.shape[-1] == 0:
            fall_back(self, f"an input of shape {tuple(input.shape)} has no rows")
            return super().forward(input)
        return ops.bias_gelu(input, approximate=self.approximate, backend=self.backend)


class BiasGELU(nn.Module):
    """Computes GELU(x + bias). Shapes: x (..., F) -> (..., F). Parameter: bias (F,), initially zero."""

    def __init__(self, features: int, *, approximate: str = "tanh", backend: str = "auto", **factory: Any):
        super().__init__()
        self.features = _checks.checked_size("BiasGELU", "features", features)
        self.approximate, self.backend = checked_gelu(self, approximate), checked_name(backend)
        self.bias = nn.Parameter(torch.zeros(features, **factory))

    def forward(self, x: Tensor) -> Tensor:
        return ops.bias_gelu(x, self.bias, approximate=self.approximate, backend=self.backend)

    def extra_repr(self) -> str:
        return f"{self.features}, approximate={self.approximate!r}"
