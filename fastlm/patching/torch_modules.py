"""Replacements for torch.nn's modules, in any model."""

from __future__ import annotations

from torch import Tensor, nn

from fastlm import ops
from fastlm.patching import parts
from fastlm.patching.options import PatchOptions
from fastlm.patching.swap import Swapped


class LayerNorm(Swapped):
    """Computes torch.nn.LayerNorm over the last dimension."""

    switch = "layer_norm"

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        return parts.reason_against_norm(module)

    def forward(self, input: Tensor) -> Tensor:
        return ops.layer_norm(input, self.weight, self.bias, eps=self.eps, backend=self.fastlm_options.backend)


class GELU(Swapped):
    """Computes torch.nn.GELU."""

    switch = "gelu"

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        return parts.reason_against_gelu(module)

    def forward(self, input: Tensor) -> Tensor:
        return ops.bias_gelu(input, approximate=parts.gelu_form(self), backend=self.fastlm_options.backend)


REPLACEMENTS = {nn.LayerNorm: LayerNorm, nn.GELU: GELU}
