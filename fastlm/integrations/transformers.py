"""Weights and configurations of Hugging Face's transformers, in and out.

`openai-gpt` (OpenAIGPTModel, OpenAIGPTLMHeadModel) is GPT1; `bert` (BertModel, BertForPreTraining) is BERT.
transformers itself is not needed: a model is its config.json and its tensors. Their Conv1D keeps weights as (in, out),
nn.Linear as (out, in); their BERT has three projections where ours has one, q above k above v.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlm.models import BERT, GPT1, BERTConfig, GPT1Config, build, files

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

# Options whose other values are other models: the field and what it must be, where it is there at all.
_REQUIRED = {
    "openai-gpt": {"afn": "gelu", "tie_word_embeddings": True},  # transformers' "gelu" is the tanh form in this model
    "bert": {
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
}

# A tied weight under the name of its second use, and a buffer: in some files, not in others.
_TIED = {
    "lm_head.weight": "transformer.tokens_embed.weight",
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_BUFFERS = ("position_ids", ".attn.bias")
_HEADS = ("pooler.", "mlm.", "nsp.")


class _Source(NamedTuple):
    """Their tensors that, each transposed or not, make one of ours, the first on top."""

    names: tuple[str, ...]
    transposed: bool = False

    def read(self, weights: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([weights[n].t() if self.transposed else weights[n] for n in self.names]).contiguous()

    def write(self, tensor: Tensor) -> dict[str, Tensor]:
        parts = tensor.detach().chunk(len(self.names))
        return {n: (t.t() if self.transposed else t).contiguous() for n, t in zip(self.names, parts, strict=True)}


def import_config(config: Mapping[str, Any]) -> Config:
    """Our configuration for the contents of their config.json, or `config.to_dict()`.

    Raises ValueError where it is another model, naming the field that makes it so.
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
    """The contents of their config.json for ours. Raises ValueError where theirs cannot say it."""
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
    weights: Mapping[str, Tensor], config: Config, *, fresh_heads: bool = False, what: str = "weights"
) -> dict[str, Tensor]:
    """Our tensors, copies, for their state dict.

    With `fresh_heads`, a head (pooler, mlm, nsp) of which theirs has nothing is left out. Raises ValueError with
    the list of names that are missing or unknown, or a weight that is not tied to what it should be.
    """
    theirs = _canonical(weights, config)
    _drop_tied(theirs, what)
    table = dict(_table(config))
    if fresh_heads:
        present = {n.partition(".")[0] for n, source in table.items() if theirs.keys() & source.names}
        table = {n: s for n, s in table.items() if not n.startswith(_HEADS) or n.partition(".")[0] in present}
    expected = {name for source in table.values() for name in source.names}
    problems = {"missing": sorted(expected - theirs.keys()), "unknown": sorted(theirs.keys() - expected)}
    text = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
    if text:
        lacks_head = any(n.startswith(("bert.pooler.", "cls.")) for n in problems["missing"])
        hint = " (fresh_heads=True initialises heads that the weights lack)" if lacks_head and not fresh_heads else ""
        raise ValueError(f"{what}: not the tensors of this model: {text}{hint}")
    return {ours: source.read(theirs) for ours, source in table.items()}


def export_weights(model: GPT1 | BERT) -> dict[str, Tensor]:
    """Their state dict for our model, tied weights once, under the name of the embedding."""
    parameters = dict(model.named_parameters())
    written: dict[str, Tensor] = {}
    for ours, source in _table(model.config):
        written |= source.write(parameters[ours])
    return written


def convert(
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    *,
    backend: str = "auto",
    fresh_heads: bool = False,
    what: str = "weights",
) -> GPT1 | BERT:
    """Our model for their configuration and state dict, e.g. `convert(m.config.to_dict(), m.state_dict())`.

    `fresh_heads` lets heads that the weights lack (an encoder alone) be freshly initialised. Raises ValueError, `what`
    naming the weights.
    """
    ours = import_config(config)
    tensors = import_weights(weights, ours, fresh_heads=fresh_heads, what=what)
    model_class = GPT1 if isinstance(ours, GPT1Config) else BERT
    if fresh_heads:
        dtype = tensors["embedding.word"].dtype
        heads = {n: p.detach().to(dtype) for n, p in build(ours).named_parameters() if n.startswith(_HEADS)}
        tensors = heads | tensors
    return model_class.from_weights(ours, tensors, backend=backend, what=what)


def load(folder: str | Path, *, backend: str = "auto", fresh_heads: bool = False) -> GPT1 | BERT:
    """Our model for a folder that transformers' `save_pretrained` wrote: config.json and model.safetensors.

    Raises FileNotFoundError, or ValueError for a model, file or tensor that does not fit; pickles are never loaded.
    """
    config, weights = files.read_config(folder), files.read_weights(folder)
    return convert(config, weights, backend=backend, fresh_heads=fresh_heads, what=str(Path(folder) / files.WEIGHTS))


def save(model: GPT1 | BERT, folder: str | Path) -> None:
    """Write a folder that transformers' `from_pretrained` reads. Raises OSError, or ValueError as `export_config`."""
    files.write(folder, export_config(model.config), export_weights(model))


def _canonical(weights: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Names as in the models with heads: prefixed, LayerNorm's as PyTorch has them (early files: gamma, beta)."""
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


def _drop_tied(theirs: dict[str, Tensor], what: str) -> None:
    for second, first in _TIED.items():
        tensor = theirs.pop(second, None)
        if tensor is not None and not torch.equal(tensor, theirs.setdefault(first, tensor)):
            raise ValueError(f"{what}: {second} differs from {first}; an untied output layer is not supported")


def _table(config: Config) -> Iterator[tuple[str, _Source]]:
    return _gpt1_table(config.layers) if isinstance(config, GPT1Config) else _bert_table(config.layers)


def _gpt1_table(layers: int) -> Iterator[tuple[str, _Source]]:
    yield "embedding.word", _Source(("transformer.tokens_embed.weight",))
    yield "embedding.position", _Source(("transformer.positions_embed.weight",))
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
            yield f"blocks.{i}.{ours}.weight", _Source((f"transformer.h.{i}.{theirs}.weight",), is_conv1d)
            yield f"blocks.{i}.{ours}.bias", _Source((f"transformer.h.{i}.{theirs}.bias",))


def _bert_table(layers: int) -> Iterator[tuple[str, _Source]]:
    for ours, theirs in (("word", "word"), ("position", "position"), ("segment", "token_type")):
        yield f"embedding.{ours}", _Source((f"bert.embeddings.{theirs}_embeddings.weight",))
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
    yield "mlm.bias", _Source(("cls.predictions.bias",))
    yield from _affine("nsp", "cls.seq_relationship")


def _affine(ours: str, *theirs: str) -> Iterator[tuple[str, _Source]]:
    for kind in ("weight", "bias"):
        yield f"{ours}.{kind}", _Source(tuple(f"{name}.{kind}" for name in theirs))
