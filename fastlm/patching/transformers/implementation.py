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


def update(tree: nn.Module, *, own_config: bool = True) -> None:
    """Switches every model that has a replaced attention module, and switches those back that have none any more.

    With `own_config` a model gets a copy of its configuration, since other models may share it.
    """
    copies: dict[int, object] = {}
    for model in _models(tree):
        config = model.config
        if not any(isinstance(module, SelfAttention) for module in model.modules()):
            if hasattr(model, _BEFORE):
                config._attn_implementation_internal = getattr(model, _BEFORE)
                delattr(model, _BEFORE)
        elif config._attn_implementation != NAME:
            _switch(model, copies.setdefault(id(config), copy.copy(config) if own_config else config))


def _switch(model: PreTrainedModel, own: object) -> None:
    """Switches a model, and the models inside it with the same configuration, to the configuration `own`."""
    config, before = model.config, model.config._attn_implementation
    own._attn_implementation_internal = NAME
    for module in model.modules():
        if vars(module).get("config") is config:
            module.config = own
            if isinstance(module, PreTrainedModel):
                setattr(module, _BEFORE, before)


def _models(tree: nn.Module) -> list[PreTrainedModel]:
    return [module for module in tree.modules() if isinstance(module, PreTrainedModel)]
