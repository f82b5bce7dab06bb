"""Which of transformers' tensors hold which of ours.

Two layouts differ. Their Conv1D stores weights as (in, out), nn.Linear as (out, in). Their BERT has three matrices q, k
and v; ours stacks them in one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fastlm.models import BERTConfig, GPT1Config

Config = GPT1Config | BERTConfig

# Some files also hold tied weights a second time, {copy: original}, and buffers.
TIED = {
    "lm_head.weight": "transformer.tokens_embed.weight",
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_BUFFERS = ("position_ids", ".attn.bias")
_HEADS = ("cls.", "classifier.", "qa_outputs.", "lm_head.", "score.", "multiple_choice_head.")


class Tensors(NamedTuple):
    """Names their tensors that make one of ours: transposed or not, then stacked along dimension 0."""

    names: tuple[str, ...]
    transposed: bool = False

    def read(self, weights: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([weights[n].t() if self.transposed else weights[n] for n in self.names]).contiguous()

    def write(self, tensor: Tensor) -> dict[str, Tensor]:
        parts = tensor.detach().chunk(len(self.names))
        return {n: (t.t() if self.transposed else t).contiguous() for n, t in zip(self.names, parts, strict=True)}


Table = dict[str, Tensors]  # by our name


def prefix(config: Config) -> str:
    """Returns what the names of the trunk's tensors begin with in their models with heads."""
    return "transformer." if isinstance(config, GPT1Config) else "bert."


def full_names(names: list[str], config: Config) -> dict[str, str]:
    """Maps their names, as in a file, to the names in their models with heads. Buffers are left out.

    The names of a model without heads have no prefix. Early files call the parameters of LayerNorm gamma and beta.
    """
    bare = not any(name.startswith(prefix(config)) for name in names)
    full = {}
    for name in names:
        if name.endswith(_BUFFERS):
            continue
        modern = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        full[name] = prefix(config) + modern if bare and not name.startswith(_HEADS) else modern
    return full


def trunk_table(config: Config) -> Table:
    """Returns the table of the trunk; for BERT with the pooler, which not all of their models have."""
    return dict(_gpt1_trunk(config.layers) if isinstance(config, GPT1Config) else _bert_trunk(config.layers))


def head_table(ours: str, kind: str, theirs: str, *, bias: bool) -> Table:
    """Returns the table of a head `ours`; `theirs` is its module in their model (see heads.py for both)."""
    if kind == "lm":  # only the embedding
        return {}
    if kind != "mlm":
        return dict(_affine(ours, theirs, bias=bias))
    return {
        **dict(_affine(f"{ours}.dense", f"{theirs}.transform.dense")),
        **dict(_affine(f"{ours}.norm", f"{theirs}.transform.LayerNorm")),
        f"{ours}.bias": Tensors((f"{theirs}.bias",)),
    }


def _gpt1_trunk(layers: int) -> Iterator[tuple[str, Tensors]]:
    yield "embedding.word", Tensors(("transformer.tokens_embed.weight",))
    yield "embedding.position", Tensors(("transformer.positions_embed.weight",))
    modules = {
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "attention_norm": "ln_1",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
        "mlp_norm": "ln_2",
    }
    for i in range(layers):
        for ours, theirs in modules.items():
            is_conv1d = not theirs.startswith("ln_")
            yield f"blocks.{i}.{ours}.weight", Tensors((f"transformer.h.{i}.{theirs}.weight",), is_conv1d)
            yield f"blocks.{i}.{ours}.bias", Tensors((f"transformer.h.{i}.{theirs}.bias",))


def _bert_trunk(layers: int) -> Iterator[tuple[str, Tensors]]:
    for ours, theirs in (("word", "word"), ("position", "position"), ("segment", "token_type")):
        yield f"embedding.{ours}", Tensors((f"bert.embeddings.{theirs}_embeddings.weight",))
    yield from _affine("embedding.norm", "bert.embeddings.LayerNorm")
    for i in range(layers):
        block, layer = f"blocks.{i}", f"bert.encoder.layer.{i}"
        projections = (f"{layer}.attention.self.{name}" for name in ("query", "key", "value"))
        yield from _affine(f"{block}.attention.qkv", *projections)
        yield from _affine(f"{block}.attention.out", f"{layer}.attention.output.dense")
        yield from _affine(f"{block}.attention_norm", f"{layer}.attention.output.LayerNorm")
        yield from _affine(f"{block}.mlp.up", f"{layer}.intermediate.dense")
        yield from _affine(f"{block}.mlp.down", f"{layer}.output.dense")
        yield from _affine(f"{block}.mlp_norm", f"{layer}.output.LayerNorm")
    yield from _affine("pooler", "bert.pooler.dense")


def _affine(ours: str, *theirs: str, bias: bool = True) -> Iterator[tuple[str, Tensors]]:
    for kind in ("weight", "bias") if bias else ("weight",):
        yield f"{ours}.{kind}", Tensors(tuple(f"{name}.{kind}" for name in theirs))
