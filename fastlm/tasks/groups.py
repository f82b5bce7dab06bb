"""Parameter groups of a model, a group per layer, for layer-wise rates."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from fastlm.models import Model
from fastlm.tasks.base import Group


def layer_groups(model: Model, new: Collection[str] | None = None) -> list[Group]:
    """Groups the trained parameters of a model of L blocks by layer, with ELECTRA's depths.

    The depths are 0 for the embedding, i + 1 for block i, and L + 2 for heads, as in ELECTRA's code
    (`_get_layer_lrs`). L + 1 is the depth of what stands between, such as BERT's pooler, which ELECTRA has not. A layer
    that is called several times has the depth of its last call. A parameter that several layers share belongs to the
    first of them.

    new: names of the heads that are not pretrained; None: all heads.
    """
    calls = list(model.block_calls())
    depth_of = {id(block): depth for depth, block in enumerate(calls, start=1)}
    top = len(calls) + 1
    blocks = [(f"blocks.{i}", block, depth_of[id(block)]) for i, block in enumerate(calls)]
    heads = [(name, head, top + 1) for name, head in model.heads.items()]
    listed = {"embedding", "blocks", *model.head_names}
    between = [(name, child, top) for name, child in model.named_children() if name not in listed]
    layers = [("embedding", model.embedding, 0), *blocks, *between, *heads]
    fresh = model.head_names if new is None else new
    return _without_repetitions([(name, layer, depth, name in fresh) for name, layer, depth in layers])


def _without_repetitions(layers: list[tuple[str, nn.Module, int, bool]]) -> list[Group]:
    """Returns a group per layer, each trained parameter in the first layer that has it; empty groups are left out."""
    seen: set[int] = set()
    groups = []
    for name, layer, depth, new in layers:
        own = [p for p in layer.parameters() if p.requires_grad and id(p) not in seen]
        seen |= {id(p) for p in own}
        if own:
            groups.append(Group(own, depth=depth, new=new, name=name))
    return groups
