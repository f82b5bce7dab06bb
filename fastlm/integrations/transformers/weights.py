"""Converts weights and configurations from and to Hugging Face's transformers.

`openai-gpt` (OpenAIGPTModel, OpenAIGPTLMHeadModel) is our GPT1; `bert` (BertModel, BertForPreTraining) is our BERT.
transformers is not imported: a model is its config.json and its tensors. Two layouts differ. Their Conv1D stores
weights as (in, out), nn.Linear as (out, in). Their BERT has three matrices q, k and v; ours stacks them in one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlm._options import list_problems
from fastlm.models import BERT, GPT1, BERTConfig, GPT1Config, build

Config = GPT1Config | BERTConfig

_GPT1_FIELDS = {
    "vocab_size": "vocab_size",
    "context": "n_positions",
    "layers": "n_layer",
    "hidden": "n_embd",
    "heads": "n_head",
    "dropout": "resid_pdrop",
    "attention_dropout": "attn_pdrop",
    "embedding_dropout": "embd_pdrop",
    "eps": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
}
_BERT_FIELDS = {
    "vocab_size": "vocab_size",
    "context": "max_position_embeddings",
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "embedding_dropout": "hidden_dropout_prob",
    "eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
    "segments": "type_vocab_size",
}
_GELU = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
_ACTIVATION = {"none": "gelu", "tanh": "gelu_new"}

# Fields that must have these values if they are present: other values make another model.
_REQUIRED = {
    "openai-gpt": {"afn": "gelu", "tie_word_embeddings": True},  # transformers' "gelu" is the tanh form in this model
    "bert": {
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
}

# Some files also hold tied weights a second time, {copy: original}, and buffers.
_TIED = {
    "lm_head.weight": "transformer.tokens_embed.weight",
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_BUFFERS = ("position_ids", ".attn.bias")
_HEADS = ("pooler.", "mlm.", "nsp.")


class _Tensors(NamedTuple):
    """Names their tensors that make one of ours: transposed or not, then stacked along dimension 0."""

    names: tuple[str, ...]
    transposed: bool = False

    def read(self, weights: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([weights[n].t() if self.transposed else weights[n] for n in self.names]).contiguous()

    def write(self, tensor: Tensor) -> dict[str, Tensor]:
        parts = tensor.detach().chunk(len(self.names))
        return {n: (t.t() if self.transposed else t).contiguous() for n, t in zip(self.names, parts, strict=True)}


def import_config(config: Mapping[str, Any]) -> Config:
    """Converts their configuration, as in config.json or `config.to_dict()`, to ours.

    Raises ValueError, naming the field, for a model that is not one of ours.
    """
    model_type = config.get("model_type") or ("bert" if "type_vocab_size" in config else None)
    if model_type not in _REQUIRED:
        raise ValueError(f"model_type must be 'openai-gpt' or 'bert', got {model_type!r}")
    for name, value in _REQUIRED[model_type].items():
        if config.get(name, value) != value:
            raise ValueError(f"{name} must be {value!r} for a {model_type} model, got {config[name]!r}")
    renamed = _GPT1_FIELDS if model_type == "openai-gpt" else _BERT_FIELDS
    missing = sorted({theirs for theirs in renamed.values() if theirs not in config})
    if missing:
        raise ValueError(f"the {model_type} configuration lacks {', '.join(missing)}")
    values = {ours: config[theirs] for ours, theirs in renamed.items()}
    if model_type == "openai-gpt":
        gpt1 = GPT1Config(**values)
        return replace(gpt1, intermediate=4 * gpt1.hidden)
    activation = config.get("hidden_act", "gelu")
    if activation not in _GELU:
        raise ValueError(f"hidden_act must be one of {', '.join(_GELU)}, got {activation!r}")
    return BERTConfig(**values, gelu=_GELU[activation])


def export_config(config: Config) -> dict[str, Any]:
    """Converts our configuration to the content of their config.json. Raises ValueError if theirs cannot express it."""
    if isinstance(config, GPT1Config):
        if config.intermediate != 4 * config.hidden:
            raise ValueError(
                f"intermediate must be 4 * hidden = {4 * config.hidden} for openai-gpt, got {config.intermediate}"
            )
        head = {"model_type": "openai-gpt", "architectures": ["OpenAIGPTLMHeadModel"], "afn": "gelu"}
        renamed = _GPT1_FIELDS
    else:
        if config.embedding_dropout != config.dropout:
            raise ValueError(
                "embedding_dropout must equal dropout for transformers' bert, which has one number for both, "
                f"got {config.embedding_dropout} and {config.dropout}"
            )
        head = {"model_type": "bert", "architectures": ["BertForPreTraining"], "hidden_act": _ACTIVATION[config.gelu]}
        renamed = _BERT_FIELDS
    return head | {theirs: getattr(config, ours) for ours, theirs in renamed.items()}


def import_weights(
    weights: Mapping[str, Tensor], config: Config, *, fresh_heads: bool = False, source: str = "weights"
) -> dict[str, Tensor]:
    """Converts their state dict to ours; the tensors are copies.

    With `fresh_heads`, a head (pooler, mlm, nsp) for which they have no tensor is left out. Raises ValueError for
    missing or unknown names, which it lists, and for an output weight that differs from the embedding.
    """
    theirs = _normalise_names(weights, config)
    _drop_tied_copies(theirs, source)
    table = dict(_table(config))
    if fresh_heads:
        present = {n.partition(".")[0] for n, entry in table.items() if theirs.keys() & entry.names}
        table = {n: s for n, s in table.items() if not n.startswith(_HEADS) or n.partition(".")[0] in present}
    expected = {name for entry in table.values() for name in entry.names}
    missing, unknown = expected - theirs.keys(), theirs.keys() - expected
    if missing or unknown:
        text = list_problems(missing=missing, unknown=unknown)
        lacks_head = any(n.startswith(("bert.pooler.", "cls.")) for n in missing)
        hint = " (fresh_heads=True initialises heads that the weights lack)" if lacks_head and not fresh_heads else ""
        raise ValueError(f"{source}: not the tensors of this model: {text}{hint}")
    return {ours: entry.read(theirs) for ours, entry in table.items()}


def export_weights(model: GPT1 | BERT) -> dict[str, Tensor]:
    """Converts our model's weights to their state dict; a tied weight is there once, by the embedding's name."""
    parameters = dict(model.named_parameters())
    written: dict[str, Tensor] = {}
    for ours, entry in _table(model.config):
        written |= entry.write(parameters[ours])
    return written


def convert(
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    *,
    backend: str = "auto",
    fresh_heads: bool = False,
    source: str = "weights",
) -> GPT1 | BERT:
    """Builds our model from their configuration and state dict, e.g. `convert(m.config.to_dict(), m.state_dict())`.

    fresh_heads: initialise heads that the weights lack, as those of an encoder alone. source: the origin of the
    weights, named in errors. Raises ValueError as `import_config` and `import_weights`.
    """
    ours = import_config(config)
    tensors = import_weights(weights, ours, fresh_heads=fresh_heads, source=source)
    model_class = GPT1 if isinstance(ours, GPT1Config) else BERT
    if fresh_heads:
        dtype = tensors["embedding.word"].dtype
        heads = {n: p.detach().to(dtype) for n, p in build(ours).named_parameters() if n.startswith(_HEADS)}
        tensors = heads | tensors
    return model_class.from_weights(ours, tensors, backend=backend, source=source)


def _normalise_names(weights: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Adds the prefix of their models with heads to all names; renames gamma and beta of LayerNorm (early files)."""
    prefix = "transformer." if isinstance(config, GPT1Config) else "bert."
    bare = not any(name.startswith(prefix) for name in weights)
    renamed = {}
    for name, tensor in weights.items():
        if name.endswith(_BUFFERS):
            continue
        if bare and not name.startswith(("cls.", "lm_head.")):
            name = prefix + name
        renamed[name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")] = (
            tensor
        )
    return renamed


def _drop_tied_copies(theirs: dict[str, Tensor], source: str) -> None:
    for second, first in _TIED.items():
        tensor = theirs.pop(second, None)
        if tensor is not None and not torch.equal(tensor, theirs.setdefault(first, tensor)):
            raise ValueError(f"{source}: {second} differs from {first}; an untied output layer is not supported")


def _table(config: Config) -> Iterator[tuple[str, _Tensors]]:
    return _gpt1_table(config.layers) if isinstance(config, GPT1Config) else _bert_table(config.layers)


def _gpt1_table(layers: int) -> Iterator[tuple[str, _Tensors]]:
    yield "embedding.word", _Tensors(("transformer.tokens_embed.weight",))
    yield "embedding.position", _Tensors(("transformer.positions_embed.weight",))
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
            yield f"blocks.{i}.{ours}.weight", _Tensors((f"transformer.h.{i}.{theirs}.weight",), is_conv1d)
            yield f"blocks.{i}.{ours}.bias", _Tensors((f"transformer.h.{i}.{theirs}.bias",))


def _bert_table(layers: int) -> Iterator[tuple[str, _Tensors]]:
    for ours, theirs in (("word", "word"), ("position", "position"), ("segment", "token_type")):
        yield f"embedding.{ours}", _Tensors((f"bert.embeddings.{theirs}_embeddings.weight",))
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
    yield from _affine("mlm.dense", "cls.predictions.transform.dense")
    yield from _affine("mlm.norm", "cls.predictions.transform.LayerNorm")
    yield "mlm.bias", _Tensors(("cls.predictions.bias",))
    yield from _affine("nsp", "cls.seq_relationship")


def _affine(ours: str, *theirs: str) -> Iterator[tuple[str, _Tensors]]:
    for kind in ("weight", "bias"):
        yield f"{ours}.{kind}", _Tensors(tuple(f"{name}.{kind}" for name in theirs))
