"""What the replacements share: dropout of a module, a linear layer without its bias, the form of a GELU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlm.dropout import draw_seeds, keep_count


def dropout_arguments(dropout: nn.Dropout, device: torch.device) -> dict[str, Any]:
    """Returns an op's arguments for a dropout layer: none outside training, else its probability and a fresh seed."""
    if dropout.p == 0.0 or not dropout.training:
        return {}
    return {"dropout_p": dropout.p, "seed": draw_seeds(1, device)}


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
    if isinstance(activation, nn.GELU):
        return activation.approximate
    if activation is F.gelu:
        return "none"
    return _FORMS.get(type(activation).__name__)


# transformers' classes. FastGELU has the tanh form with a rounded constant, equal to 8 digits.
_FORMS = {"GELUActivation": "none", "NewGELUActivation": "tanh", "GELUTanh": "tanh", "PytorchGELUTanh": "tanh",
          "FastGELUActivation": "tanh"}  # fmt: skip


def reason_against_gelu(activation: Any) -> str | None:
    """Returns why our GELU cannot stand for an activation, or None."""
    name = getattr(activation, "__name__", type(activation).__name__)
    return None if gelu_form(activation) else f"its activation is {name}, not a GELU with a tanh or erf form"


def is_plain(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Returns whether a module is exactly of a class and without hooks, so that its parameters may be used directly.

    Adapters, quantized layers and parametrizations have classes of their own. Sharding libraries use hooks.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) is cls and not any(hooks) and "forward" not in vars(module)


def project(linear: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns linear(x) without the bias, and the bias; if the layer is not a plain one, its output, and None."""
    if is_plain(linear, nn.Linear):
        return F.linear(x, linear.weight), linear.bias
    if type(linear).__name__ == "Conv1D" and is_plain(linear, type(linear)):  # transformers' layer, weight (in, out)
        return x @ linear.weight, linear.bias
    return linear(x), None
