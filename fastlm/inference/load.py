"""Loads a trained model and its tokenizer from a run folder, a model's folder, or a folder of transformers'.

Both kinds of models' folders have a config.json. Ours has "layers", theirs "n_layer" or "num_hidden_layers".
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from fastlm import models
from fastlm.data import tokenizer
from fastlm.data.corpus import DataError
from fastlm.data.labelled.description import TASK_FILE, Description
from fastlm.data.tokenizer import Tokenizer
from fastlm.device import find_device
from fastlm.inference.heads import task_head
from fastlm.models import GPT1Config, Model, files
from fastlm.nn import Head
from fastlm.run_folder import RunError, RunFolder


def load_trained(
    run: str | Path, device: str = "auto", *, head: str | None = None, notify: Callable[[str], None] = warnings.warn
) -> tuple[Model, Tokenizer]:
    """Returns the model of a run, in eval mode, and its tokenizer. An unfinished run gives its last checkpoint's model.

    head: a head that the model must have. notify: gets a sentence on each damaged checkpoint, whose predecessor is then
    taken. Raises RunError if there is no such run or head, or if the tokenizer is not the run's, DeviceError if there
    is no such device, and the errors of `models.load`.
    """
    folder = RunFolder(run)
    model = models.load(folder.newest_model(notify))
    if head is not None and head not in model.head_names:
        others = ", ".join(repr(name) for name in model.head_names) or "no head"
        raise RunError(f"run: {run} holds a {type(model).__name__} with {others}; a model with {head!r} is needed")
    words = tokenizer.load(folder.tokenizer_file)
    _check_tokenizer(folder, words, model)
    return model.to(find_device(device)).eval(), words


def check_logits(logits: Tensor) -> Tensor:
    """Returns logits. Raises ValueError if the largest one is infinite or NaN: then no probability can be computed."""
    if not logits.max().isfinite():
        raise ValueError(
            f"model: its logits must be finite numbers, got {logits.max().item()}; its weights are damaged or too large"
        )
    return logits


def _check_tokenizer(folder: RunFolder, words: Tokenizer, model: Model) -> None:
    """Raises RunError unless a tokenizer is the one that the model was trained with.

    The run's plan names its hash. Without a plan, as in old run folders, only the number of entries is compared.
    """
    trained, size = folder.tokenizer_hash(), model.config.vocab_size
    if words.hash == trained or (trained is None and words.vocab_size == size):
        return
    expected = f"{size} entries" if trained is None else f"hash {trained[:12]}"
    raise RunError(
        f"run: the tokenizer of {expected} expected, with which the model was trained, but {folder.tokenizer_file} has "
        f"{words.vocab_size} entries and hash {words.hash[:12]}; put back the run's own"
    )


def load_pretrained(
    source: str | Path,
    heads: Mapping[str, Head] | None = None,
    *,
    device: str = "cpu",
    backend: str = "auto",
    drop: Sequence[str] = (),
) -> tuple[Model, Tokenizer]:
    """Returns the model, in eval mode, and the tokenizer of a run folder, a fastlm model's folder (whose tokenizer is
    in it or beside it), a folder of transformers', or a model of its hub.

    heads: by name. None gives the heads that the source has; a fine-tuned model's is `Description.head`. Given heads of
        pretraining get the source's tensors, if it has them. Given heads of tasks are always fresh, since their units
        may mean other labels.
    drop: heads of the source to leave out, by name; in transformers' folders, tensors or modules ("cls.species").

    Raises RunError, DeviceError, DataError for a missing tokenizer, and the errors of `models.load` and of
    `fastlm.integrations.transformers.from_pretrained`.
    """
    folder, vocabulary = _our_folder(source)
    if folder is None:
        from fastlm.integrations.transformers import from_pretrained

        loaded = from_pretrained(source, heads, drop=drop, backend=backend)
        if loaded.tokenizer is None:
            raise DataError(f"{source}: a tokenizer.json, a vocab.txt, or a vocab.json with merges.txt expected")
        return loaded.model.to(find_device(device)).eval(), loaded.tokenizer
    model, words = _load_ours(folder, heads, drop, backend), tokenizer.load(vocabulary)
    if folder != Path(source):
        _check_tokenizer(RunFolder(source), words, model)
    return model.to(find_device(device)).eval(), words


def read_task(source: str | Path) -> Description | None:
    """Returns what a fine-tuned model does, the content of task.json, or None for a model without a task.

    For a folder of transformers' it is made from config.json, with the labels in the order of id2label. Raises RunError
    for a folder of neither, or DataError for a damaged file.
    """
    folder, _ = _our_folder(source)
    if folder is None:
        from fastlm.integrations.transformers import read_task

        return read_task(source)
    path = folder / TASK_FILE
    return Description.read(path) if path.is_file() else None


def is_ours(source: str | Path) -> bool:
    """Returns whether a source is a run folder or a fastlm model's folder. Raises as `load_pretrained`."""
    return _our_folder(source)[0] is not None


def is_run(source: str | Path) -> bool:
    """Returns whether a source is a run folder, not a model's folder. Raises as `load_pretrained`."""
    return _our_folder(source)[0] not in (None, Path(source))


def _our_folder(source: str | Path) -> tuple[Path | None, Path | None]:
    """Returns the folder of a fastlm model, and its tokenizer file; (None, None) for a source of transformers'."""
    folder = Path(source)
    run = RunFolder(folder)
    if not run.exists():
        return None, None
    values = files.read_config(folder)
    if "model_type" not in values:
        return run.newest_model(), run.tokenizer_file
    if "layers" not in values:
        return None, None
    beside = [path for path in (folder, folder.parent) if (path / "tokenizer.json").is_file()]
    return folder, (beside[0] if beside else folder) / "tokenizer.json"


def _load_ours(folder: Path, heads: Mapping[str, Head] | None, drop: Sequence[str], backend: str) -> Model:
    """Loads a fastlm model with the given heads, or with those that its file has."""
    config, weights = models.read_config(folder), files.read_weights(folder)
    task, pretrained = read_task(folder), models.pretraining_heads(config, backend=backend)
    parts = {name.partition(".")[0] for name in weights}
    own = {name: head for name, head in pretrained.items() if name in parts or not list(head.parameters())}
    if task is not None:
        shared = isinstance(config, GPT1Config)
        own[task.head] = task_head(task, config.hidden, shared_dropout=shared, backend=backend)
    unknown = [name for name in drop if name not in own]
    if unknown:
        raise ValueError(f"drop: a head of {folder} expected ({', '.join(own)}), got {unknown[0]!r}")
    if heads is None:
        heads = {name: head for name, head in own.items() if name not in drop}
        task = task if task is not None and task.head in heads else None
    else:  # heads of tasks are fresh
        fresh = {name for name in heads if name in drop or name not in pretrained}
        weights = {name: tensor for name, tensor in weights.items() if name.partition(".")[0] not in fresh}
        task = None
    model = models.from_weights(config, weights, heads, backend=backend, source=str(folder / files.WEIGHTS))
    if task is not None:
        model.companions[TASK_FILE] = task.to_json()
    return model
