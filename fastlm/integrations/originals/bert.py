"""Google's BERT checkpoint, as a .npz of its variables by name, with bert_config.json and vocab.txt beside it.

    variable                                              ours                     stored
    bert/embeddings/{word,position,token_type}_embeddings embedding.{word,position,segment}
    bert/embeddings/LayerNorm/{gamma,beta}                embedding.norm
    bert/encoder/layer_i/attention/self/{query,key,value} blocks.i.attention.qkv   kernels transposed, then stacked
    bert/encoder/layer_i/attention/output/dense           blocks.i.attention.out   kernel transposed
    bert/encoder/layer_i/attention/output/LayerNorm       blocks.i.attention_norm
    bert/encoder/layer_i/intermediate/dense               blocks.i.mlp.up          kernel transposed
    bert/encoder/layer_i/output/dense                     blocks.i.mlp.down        kernel transposed
    bert/encoder/layer_i/output/LayerNorm                 blocks.i.mlp_norm
    bert/pooler/dense                                     pooler                   kernel transposed
    cls/predictions/transform/dense                       mlm.dense                kernel transposed
    cls/predictions/transform/LayerNorm                   mlm.norm
    cls/predictions/output_bias                           mlm.bias
    cls/seq_relationship/output_{weights,bias}            nsp                      (2, E), as here

A name may end in ":0". A kernel is (in, out), also where both are equal. Google's GELU is the tanh form, and its
epsilon 1e-12.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastlm._options import list_problems
from fastlm.files import new_file, write_json
from fastlm.integrations.transformers.config import export_config, import_config
from fastlm.integrations.transformers.names import Table, Tensors
from fastlm.models import BERT, BERTConfig, from_weights, pretraining_heads

CONFIG, WEIGHTS = "bert_config.json", "bert_model.npz"
_EPS = 1e-12
_SLOTS = ("/adam_m", "/adam_v")
_STEP = "global_step"
_HEADS = {"mlm": "cls/predictions/", "nsp": "cls/seq_relationship/"}


def find_google(source: str | Path) -> Path | None:
    """Returns the .npz of a source: itself, or the only one of a folder with bert_config.json; None for another source.

    Raises ValueError for a folder with several.
    """
    source = Path(source)
    if source.suffix == ".npz" and source.is_file():
        return source
    if not (source / CONFIG).is_file() or (source / "config.json").is_file():  # the latter is transformers'
        return None
    found = sorted(source.glob("*.npz"))
    if len(found) != 1:
        raise ValueError(f"{source}: one .npz of variables expected beside {CONFIG}, got {len(found)}")
    return found[0]


def read_google(source: str | Path, *, backend: str = "auto") -> BERT:
    """Returns the model of a .npz or of its folder, in eval mode, with the heads that the file has: "mlm", "nsp".

    Optimizer slots (adam_m, adam_v) and global_step are left out. Raises FileNotFoundError, or ValueError, naming the
    file, for missing or unknown variables, or damaged files.
    """
    path = find_google(source)
    if path is None:
        raise FileNotFoundError(f"{source}: a .npz of variables, or a folder with one and {CONFIG}, expected")
    config, variables = _read_config(path.with_name(CONFIG)), _read_variables(path)
    present = {name for name, start in _HEADS.items() if any(v.startswith(start) for v in variables)}
    table = _table(config, present)
    expected = {name for entry in table.values() for name in entry.names}
    problems = list_problems(missing=expected - variables.keys(), unknown=variables.keys() - expected)
    if problems:
        raise ValueError(f"{path}: not the variables of this model: {problems}")
    _check_shapes(path, config, present, variables)
    weights = {ours: entry.read(variables) for ours, entry in table.items()}
    heads = {n: head for n, head in pretraining_heads(config, backend=backend).items() if n in present}
    return from_weights(config, weights, heads, backend=backend, source=str(path)).eval()


def write_google(model: BERT, folder: str | Path) -> None:
    """Writes bert_model.npz and bert_config.json, each atomically. Weights become float32.

    Raises OSError, or ValueError for a model that Google's code cannot hold: another epsilon, the exact GELU, a dropout
    of its own for the embeddings, or other heads than "mlm" and "nsp".
    """
    config = model.config
    if not isinstance(config, BERTConfig):
        raise ValueError(f"model: a BERT expected for Google's format, got a {type(model).__name__}")
    if config.eps != _EPS:
        raise ValueError(f"eps must be {_EPS} in Google's format, got {config.eps}")
    if config.gelu != "tanh":
        raise ValueError(f"gelu must be 'tanh' in Google's format, got {config.gelu!r} (the exact erf)")
    others = set(model.head_names) - _HEADS.keys()
    if others:
        raise ValueError(f"heads: Google's format holds mlm and nsp, got {', '.join(sorted(others))}; drop it")
    exported = export_config(replace(config), {})
    fields = {n: v for n, v in exported.items() if n not in ("architectures", "model_type", "layer_norm_eps")}
    parameters, arrays = dict(model.named_parameters()), {}
    for ours, entry in _table(config, set(model.head_names)).items():
        arrays |= {n: t.to("cpu", torch.float32).numpy() for n, t in entry.write(parameters[ours]).items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with new_file(folder / WEIGHTS) as path, path.open("wb") as file:
        np.savez(file, **arrays)
    write_json(folder / CONFIG, fields | {"hidden_act": "gelu"})


def left_out(source: str | Path) -> list[str]:
    """Returns the names of the optimizer's variables in a source that `read_google` reads, sorted."""
    with np.load(find_google(source), allow_pickle=False) as arrays:
        return sorted(filter(_is_optimizers, arrays.files))


def _plain(name: str) -> str:
    """Returns the name of a variable without TensorFlow's ":0", which its variables have and its checkpoints do not."""
    return name.removesuffix(":0")


def _is_optimizers(name: str) -> bool:
    return _plain(name) == _STEP or _plain(name).endswith(_SLOTS)


def _check_shapes(path: Path, config: BERTConfig, heads: set[str], variables: Mapping[str, Tensor]) -> None:
    """Raises ValueError, naming file and variable, for a variable of another shape or not of floating point."""
    with torch.device("meta"):
        fresh = {n: head for n, head in pretraining_heads(config).items() if n in heads}
        parameters = dict(BERT(config, fresh).named_parameters())
    for ours, entry in _table(config, heads).items():
        for name, wanted in entry.write(parameters[ours]).items():
            given = variables[name]
            if given.shape != wanted.shape or not given.is_floating_point():
                raise ValueError(
                    f"{path}: {name}: floating point of shape {list(wanted.shape)} expected, as {CONFIG} says, "
                    f"got {str(given.dtype).removeprefix('torch.')} of shape {list(given.shape)}"
                )


def _table(config: BERTConfig, heads: set[str]) -> Table:
    return dict(_entries(config, heads))


def _entries(config: BERTConfig, heads: set[str]) -> Iterator[tuple[str, Tensors]]:
    for ours, theirs in (("word", "word"), ("position", "position"), ("segment", "token_type")):
        yield f"embedding.{ours}", Tensors((f"bert/embeddings/{theirs}_embeddings",))
    yield from _norm("embedding.norm", "bert/embeddings/LayerNorm")
    for i in range(config.layers):
        block, layer = f"blocks.{i}", f"bert/encoder/layer_{i}"
        projections = (f"{layer}/attention/self/{name}" for name in ("query", "key", "value"))
        yield from _dense(f"{block}.attention.qkv", *projections)
        yield from _dense(f"{block}.attention.out", f"{layer}/attention/output/dense")
        yield from _norm(f"{block}.attention_norm", f"{layer}/attention/output/LayerNorm")
        yield from _dense(f"{block}.mlp.up", f"{layer}/intermediate/dense")
        yield from _dense(f"{block}.mlp.down", f"{layer}/output/dense")
        yield from _norm(f"{block}.mlp_norm", f"{layer}/output/LayerNorm")
    yield from _dense("pooler", "bert/pooler/dense")
    if "mlm" in heads:
        yield from _dense("mlm.dense", "cls/predictions/transform/dense")
        yield from _norm("mlm.norm", "cls/predictions/transform/LayerNorm")
        yield "mlm.bias", Tensors(("cls/predictions/output_bias",))
    if "nsp" in heads:
        yield "nsp.weight", Tensors(("cls/seq_relationship/output_weights",))
        yield "nsp.bias", Tensors(("cls/seq_relationship/output_bias",))


def _dense(ours: str, *theirs: str) -> Iterator[tuple[str, Tensors]]:
    yield f"{ours}.weight", Tensors(tuple(f"{name}/kernel" for name in theirs), transposed=True)
    yield f"{ours}.bias", Tensors(tuple(f"{name}/bias" for name in theirs))


def _norm(ours: str, theirs: str) -> Iterator[tuple[str, Tensors]]:
    yield f"{ours}.weight", Tensors((f"{theirs}/gamma",))
    yield f"{ours}.bias", Tensors((f"{theirs}/beta",))


def _read_config(path: Path) -> BERTConfig:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it goes with the .npz of the variables")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, Mapping):
            raise ValueError(f"a JSON object expected, got a {type(values).__name__}")
        if values.get("hidden_act", "gelu") != "gelu":
            raise ValueError(f"hidden_act must be 'gelu', got {values['hidden_act']!r}")
        known = {"model_type": "bert", "hidden_act": "gelu_new", "layer_norm_eps": _EPS}
        return import_config({**values, **known})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _read_variables(path: Path) -> dict[str, Tensor]:
    """Returns the variables of a .npz but those of the optimizer. Nothing is unpickled."""
    variables = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                if not _is_optimizers(name):
                    variables[_plain(name)] = torch.from_numpy(arrays[name])
    except (ValueError, TypeError, EOFError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: a .npz of numbers expected, or a damaged one ({error})") from error
    return variables
