"""Helpers that the replacements share: what keeps a module from being replaced, and transformers' own classes.

For torch's classes they call the helpers of `fastlm.nn`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlm.dropout import keep_count
from fastlm.nn import _modules
from fastlm.nn._modules import dropout_options, is_plain, split_bias


def dropout_arguments(dropout: nn.Dropout, device: torch.device) -> dict[str, Any]:
    """Returns an op's arguments for a dropout layer: none outside training, else its probability and a fresh seed."""
    return dropout_options(dropout, dropout.p, None, device)


def reason_against_dropout(dropout: nn.Module) -> str | None:
    """Returns why our dropout cannot stand for a layer, or None."""
    if type(dropout) is not nn.Dropout:
        return f"its dropout is a {type(dropout).__name__}"
    try:
        keep_count(dropout.p, "its dropout")
    except ValueError as error:
        return str(error)
    return None


def reason_against_norm(norm: nn.Module) -> str | None:
    """Returns why our layer norm cannot stand for a module, or None."""
    cls = getattr(type(norm), "original", type(norm))  # the class that a replaced layer norm had
    if not isinstance(norm, nn.LayerNorm) or cls.forward is not nn.LayerNorm.forward:
        return f"its norm is a {type(norm).__name__}"
    if norm.weight is None:
        return "its layer norm has no weight"
    if len(norm.normalized_shape) != 1:
        return f"its layer norm is over {len(norm.normalized_shape)} dimensions"
    return None


def gelu_form(activation: Any) -> str | None:
    """Returns "tanh" or "none" (erf) for a GELU, a function or a module, and None for another activation."""
    if isinstance(activation, nn.GELU):  # with hooks, too: a replaced GELU is one of these
        return activation.approximate
    return _modules.gelu_form(activation) or _FORMS.get(type(activation).__name__)


# transformers' classes. FastGELU has the tanh form with a rounded constant, equal to 8 digits.
_FORMS = {"GELUActivation": "none", "NewGELUActivation": "tanh", "GELUTanh": "tanh", "PytorchGELUTanh": "tanh",
          "FastGELUActivation": "tanh"}  # fmt: skip


def reason_against_gelu(activation: Any) -> str | None:
    """Returns why our GELU cannot stand for an activation, or None."""
    name = getattr(activation, "__name__", type(activation).__name__)
    return None if gelu_form(activation) else f"its activation is {name}, not a GELU with a tanh or erf form"


def project(linear: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns linear(x) without the bias, and the bias; if the layer is not a plain one, its output, and None."""
    if type(linear).__name__ == "Conv1D" and is_plain(linear, type(linear)):  # transformers' layer, weight (in, out)
        return x @ linear.weight, linear.bias
    return split_bias(linear, x)
