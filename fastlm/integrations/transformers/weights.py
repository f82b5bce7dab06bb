"""Converts tensors from and to transformers' state dicts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from fastlm._options import list_problems
from fastlm.data.labelled.description import Description
from fastlm.integrations.transformers.config import import_config
from fastlm.integrations.transformers.heads import find_class, has_bias, kind_of, model_table, modules
from fastlm.integrations.transformers.names import TIED, Config, full_names, head_table, prefix, trunk_table
from fastlm.models import BERT, GPT1, BERTConfig, from_weights, pretraining_heads
from fastlm.nn import Head


class StateDict:
    """Holds their state dict under the names of their models with heads; buffers and tied copies are left out.

    tensors: by full name. Raises ValueError for an output weight that differs from the embedding.
    """

    def __init__(self, weights: Mapping[str, Tensor], config: Config, source: str):
        self.config, self.source = config, source
        self.given = {full: name for name, full in full_names(list(weights), config).items()}
        self.tensors = {full: weights[name] for full, name in self.given.items()}
        for copy, original in TIED.items():
            tensor = self.tensors.pop(copy, None)
            if tensor is not None and not torch.equal(tensor, self.tensors.setdefault(original, tensor)):
                raise ValueError(f"{source}: {copy} differs from {original}; an untied output layer is not supported")

    def names_of(self, module: str) -> list[str]:
        """Returns the names of a module's tensors."""
        return [name for name in self.tensors if name.startswith(f"{module}.")]

    def leave_out(self, module: str) -> list[str]:
        """Removes the tensors of a module, and returns their names as they were given."""
        names = self.names_of(module)
        for name in names:
            del self.tensors[name]
        return [self.given.get(name, name) for name in names]

    def read(self, heads: Mapping[str, str], *, optional: Collection[str], hint: str = "") -> dict[str, Tensor]:
        """Returns our tensors for a model with these heads, {name: kind}, as copies.

        optional: heads, or "pooler", that are left out if there is no tensor of them at all.

        Raises ValueError, which lists them, for tensors that are missing, and for those of no part of the model.
        """
        table, module_of = trunk_table(self.config), modules(self.config)
        for name, kind in heads.items():
            table |= head_table(name, kind, module_of[kind], bias=has_bias(self.config, kind))
        present = {_part(ours) for ours, entry in table.items() if self.tensors.keys() & entry.names}
        table = {n: entry for n, entry in table.items() if _part(n) in present or _part(n) not in optional}
        expected = {name for entry in table.values() for name in entry.names}
        missing, unknown = expected - self.tensors.keys(), self.tensors.keys() - expected
        if missing or unknown:
            text = list_problems(missing=missing, unknown={self.given.get(name, name) for name in unknown})
            lacks_head = any(name.startswith(("bert.pooler.", "cls.")) for name in missing)
            raise ValueError(f"{self.source}: not the tensors of this model: {text}{hint if lacks_head else ''}")
        return {ours: entry.read(self.tensors) for ours, entry in table.items()}


def import_weights(
    weights: Mapping[str, Tensor],
    config: Config,
    heads: Mapping[str, Head] | None = None,
    *,
    fresh_heads: bool = False,
    source: str = "weights",
) -> dict[str, Tensor]:
    """Converts their state dict to ours; the tensors are copies.

    heads: by name; None means those that the model is pretrained with. fresh_heads: leave out a head, or BERT's pooler,
    for which they have no tensor. source: the origin of the weights, named in errors.

    Raises ValueError for missing or unknown names, which it lists, and for an output weight that differs from the
    embedding.
    """
    heads = pretraining_heads(config) if heads is None else heads
    kinds = {name: kind_of(head) for name, head in heads.items()}
    optional = ("pooler", *kinds) if fresh_heads else ()
    hint = "" if fresh_heads else " (fresh_heads=True initialises heads that the weights lack)"
    return StateDict(weights, config, source).read(kinds, optional=optional, hint=hint)


def export_weights(model: GPT1 | BERT, task: Description | None = None) -> dict[str, Tensor]:
    """Converts our model's weights to their state dict; a tied weight is there once, by the embedding's name.

    task: needed for a task's head. BERT's pooler is left out if their class has none. A head without a bias gets one
    of zeros if their class has one. Raises ValueError, with a sentence, if transformers cannot hold the model.
    """
    theirs, parameters = find_class(model.config, model.heads, task), dict(model.named_parameters())
    written: dict[str, Tensor] = {}
    for ours, entry in model_table(model.config, model.heads, theirs).items():
        written |= entry.write(parameters[ours])
    for module in theirs.modules.values():
        weight = written.get(f"{module}.weight")
        if theirs.bias and weight is not None and f"{module}.bias" not in written:
            written[f"{module}.bias"] = weight.new_zeros(weight.shape[0])
    if not theirs.modules:  # their classes without heads do not have the prefix
        return {name.removeprefix(prefix(model.config)): tensor for name, tensor in written.items()}
    return written


def convert(
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    *,
    backend: str = "auto",
    fresh_heads: bool = False,
    source: str = "weights",
) -> GPT1 | BERT:
    """Builds our pretrained model from their configuration and state dict.

    For example `convert(m.config.to_dict(), m.state_dict())`. fresh_heads: initialise heads that the weights lack, as
    those of an encoder alone. source: the origin of the weights, named in errors. Raises ValueError as `import_config`
    and `import_weights`.
    """
    ours = import_config(config)
    tensors = import_weights(weights, ours, fresh_heads=fresh_heads, source=source)
    return assemble(ours, tensors, pretraining_heads(ours, backend=backend), backend=backend, source=source)


def assemble(
    config: Config, tensors: dict[str, Tensor], heads: Mapping[str, Head], *, backend: str, source: str
) -> GPT1 | BERT:
    """Builds our model from our tensors, not copies. Heads and BERT's pooler stay fresh if they have no tensors."""
    if isinstance(config, BERTConfig) and "pooler.weight" not in tensors:
        tensors = tensors | _fresh_pooler(config, tensors["embedding.word"].dtype)
    return from_weights(config, tensors, heads, backend=backend, source=source)


def _fresh_pooler(config: BERTConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    with torch.device("meta"):
        model = BERT(config, {})
    pooler = model.pooler.to_empty(device="cpu")
    model.initialise(pooler)
    return {f"pooler.{name}": p.detach().to(dtype) for name, p in pooler.named_parameters()}


def _part(ours: str) -> str:
    return ours.partition(".")[0]
