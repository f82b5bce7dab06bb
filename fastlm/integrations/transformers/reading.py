"""Loads models and tokenizers from folders that transformers wrote, or from its hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from fastlm.data.labelled.description import TASK_FILE, Description
from fastlm.data.labelled.examples import KINDS
from fastlm.data.tokenizer import Tokenizer
from fastlm.inference.heads import task_head
from fastlm.integrations.transformers.checkpoint import find_folder, leave_out, read_tensors
from fastlm.integrations.transformers.config import import_config, import_task
from fastlm.integrations.transformers.heads import POOLED, PRETRAINED, has_bias, kind_of, modules
from fastlm.integrations.transformers.names import Config
from fastlm.integrations.transformers.tokenizer_files import read_tokenizer
from fastlm.integrations.transformers.weights import StateDict, assemble, convert
from fastlm.models import BERT, GPT1, GPT1Config, files, pretraining_heads
from fastlm.nn import Head


class Pretrained(NamedTuple):
    """Holds what a folder has.

    tokenizer: None if the folder has no tokenizer. task: what a fine-tuned model does; None for another model.
    left_out: names of tensors that the model has no place for. fresh: names of parameters that the folder has no tensor
    for, which are freshly initialised.
    """

    model: BERT | GPT1
    tokenizer: Tokenizer | None
    task: Description | None
    left_out: tuple[str, ...]
    fresh: tuple[str, ...]


def from_pretrained(
    source: str | Path,
    heads: Mapping[str, Head] | None = None,
    *,
    drop: Sequence[str] = (),
    backend: str = "auto",
) -> Pretrained:
    """Loads a model of transformers from a folder, or from the hub by its name if huggingface_hub is installed.

    The model is in eval mode, as transformers leaves it. The weights are safetensors, whole or sharded, or else
    pytorch_model.bin, of which only tensors are unpickled.

    Args:
        source: the folder, or a name such as "google-bert/bert-base-uncased".
        heads: by name. None gives the heads that the folder has tensors for: "mlm", "nsp", "lm", and a task's head by
            `Description.head`, with its labels in the order of id2label. Given heads of pretraining get the folder's
            tensors, if it has them. Given heads of tasks are always fresh, since their units may mean other labels.
        drop: names of tensors, or of modules ("cls.species"), to leave out.
        backend: which backend runs the model's ops.

    Raises FileNotFoundError, or ValueError, naming the file, for a model, tensor or tokenizer that does not fit.
    """
    folder = find_folder(source)
    config, task = _read_config(folder)
    weights, where = read_tensors(folder)
    weights, dropped = leave_out(weights, drop, where)
    state = StateDict(weights, config, where)
    if heads is None:
        heads, task = _heads_of(state, task, dropped, backend)
        kinds = {name: kind for name, head in heads.items() if (kind := kind_of(head))}
        optional: set[str] = set()
    else:
        kinds = {name: kind for name, head in heads.items() if (kind := kind_of(head)) in PRETRAINED}
        optional, task = set(kinds), None
    module_of = modules(config)
    found = {kind for kind in kinds.values() if state.names_of(module_of[kind])}
    if POOLED.isdisjoint(found):
        optional.add("pooler")
    others = set(module_of.values()) - {module_of[kind] for kind in kinds.values()}
    left_out = [*dropped, *(name for module in others for name in state.leave_out(module))]
    tensors = state.read(kinds, optional=optional)
    model = assemble(config, dict(tensors), heads, backend=backend, source=where).eval()
    if task is not None:
        model.companions[TASK_FILE] = task.to_json()
    fresh = [name for name, _ in model.named_parameters() if name not in tensors]
    return Pretrained(model, read_tokenizer(folder, _model_type(config)), task, tuple(sorted(left_out)), tuple(fresh))


def read_task(folder: str | Path) -> Description | None:
    """Returns what a fine-tuned model of a folder does, with its labels in the order of id2label, or None.

    Raises FileNotFoundError or ValueError, naming the file.
    """
    return _read_config(find_folder(folder))[1]


def load(folder: str | Path, *, backend: str = "auto", fresh_heads: bool = False) -> GPT1 | BERT:
    """Loads a pretrained model from a folder that transformers' `save_pretrained` wrote, with its pretraining heads.

    fresh_heads: initialise heads that the weights lack, as those of an encoder alone. See `from_pretrained` for other
    heads, and for the tokenizer. Raises FileNotFoundError, or ValueError for a model, file or tensor that does not fit.
    """
    config, (weights, source) = files.read_config(folder), read_tensors(folder)
    return convert(config, weights, backend=backend, fresh_heads=fresh_heads, source=source)


def _read_config(folder: Path) -> tuple[Config, Description | None]:
    values = files.read_config(folder)
    try:
        config, task = import_config(values), import_task(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / files.CONFIG}: {error}") from error
    return config, _described(folder, task)


def _heads_of(
    state: StateDict, task: Description | None, dropped: Sequence[str], backend: str
) -> tuple[dict[str, Head], Description | None]:
    """Returns the heads that the tensors are for, and the task, if its head is one of them."""
    module_of = modules(state.config)
    pretrained = pretraining_heads(state.config, backend=backend)
    heads = {name: head for name, head in pretrained.items() if name == "lm" or state.names_of(module_of[name])}
    if task is None:
        _check_no_task_head(state, module_of)
        return heads, None
    module = module_of[task.kind]
    if any(name.startswith(f"{module}.") for name in dropped):
        return heads, None
    weight = state.tensors.get(f"{module}.weight")
    if weight is None:
        raise ValueError(f"{state.source}: missing: {module}.weight, the head of a model for {task.kind}")
    _check_units(state.source, f"{module}.weight", weight, task)
    task = replace(task, head_bias=has_bias(state.config, task.kind))
    shared = isinstance(state.config, GPT1Config)
    return heads | {task.head: task_head(task, state.config.hidden, shared_dropout=shared, backend=backend)}, task


def _check_no_task_head(state: StateDict, module_of: Mapping[str, str]) -> None:
    """Raises ValueError for a task's head whose kind no class in config.json tells."""
    for kind in KINDS:
        module = module_of.get(kind)
        if module and state.names_of(module):
            raise ValueError(
                f'{state.source}: {module}.weight is the head of a task, but "architectures" in {files.CONFIG} names '
                f"no class that has it; drop {module!r} to load the model without it"
            )


def _check_units(source: str, name: str, weight: Tensor, task: Description) -> None:
    expected = {"regression": 1, "choice": 1, "span": 2}.get(task.kind, len(task.labels))
    if weight.shape[0] != expected:
        raise ValueError(
            f"{source}: {name} with {expected} rows expected, one per label of id2label in {files.CONFIG} or output, "
            f"got {weight.shape[0]}"
        )


def _described(folder: Path, task: Description | None) -> Description | None:
    """Returns the task with what task.json says beside it. The labels are those of id2label."""
    path = folder / TASK_FILE
    if task is None or not path.is_file():
        return task
    written = Description.read(path)
    if written.kind != task.kind:
        raise ValueError(f"{path}: kind {task.kind!r} expected, as in {files.CONFIG}, got {written.kind!r}")
    return replace(written, labels=task.labels)


def _model_type(config: Config) -> str:
    return "openai-gpt" if isinstance(config, GPT1Config) else "bert"
