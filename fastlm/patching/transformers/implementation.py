"""Switches the attention implementation of transformers' models in a tree to "fastlm", and back."""

from __future__ import annotations

import copy

from torch import nn
from transformers import PreTrainedModel

from fastlm.patching.transformers.attention import NAME, SelfAttention

_BEFORE = "_fastlm_attention_before"  # the attribute of a switched model with the name of its former implementation


def modules_of_models(tree: nn.Module) -> frozenset[int]:
    """Returns the ids of all modules that are inside a model of transformers."""
    return frozenset(id(module) for model in _models(tree) for module in model.modules())


def switch_on(tree: nn.Module, *, own_config: bool) -> None:
    """Switches every model that has a replaced attention module.

    With `own_config` the model gets a copy of its configuration, since other models may share it.
    """
    copies: dict[int, object] = {}
    for model in _models(tree):
        if not any(isinstance(module, SelfAttention) for module in model.modules()):
            continue
        config, before = model.config, model.config._attn_implementation
        if before == NAME:
            continue
        own = copies.setdefault(id(config), copy.copy(config) if own_config else config)
        own._attn_implementation_internal = NAME
        for module in model.modules():
            if vars(module).get("config") is config:
                module.config = own
                if isinstance(module, PreTrainedModel):
                    setattr(module, _BEFORE, before)


def switch_off(tree: nn.Module) -> None:
    """Gives every switched model its former implementation back."""
    for model in _models(tree):
        if hasattr(model, _BEFORE):
            model.config._attn_implementation_internal = getattr(model, _BEFORE)
            delattr(model, _BEFORE)


def _models(tree: nn.Module) -> list[PreTrainedModel]:
    return [module for module in tree.modules() if isinstance(module, PreTrainedModel)]
