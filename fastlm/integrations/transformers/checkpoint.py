"""Finds a folder of transformers', also on the hub, and reads its tensors, in whole files or in shards.

Only tensors are ever unpickled: `torch.load(weights_only=True)` refuses everything that could run code.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastlm._options import list_problems
from fastlm.models import files

PICKLE = "pytorch_model.bin"
_INDEX = ".index.json"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SMALL_FILES = ("config.json", "task.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json")  # fmt: skip


def find_folder(source: str | Path) -> Path:
    """Returns a folder, or a copy of a model of the hub if `source` is no folder but could be such a model's name.

    Raises FileNotFoundError, with a sentence, if there is neither.
    """
    folder, name = Path(source), str(source)
    if folder.is_dir():
        return folder
    if folder.exists() or not _HUB_NAME.fullmatch(name) or set(name) == {"."}:
        raise FileNotFoundError(f"{source}: a model's folder expected")
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        raise FileNotFoundError(
            f"{source}: no such folder (if it is the name of a model on the Hugging Face hub: "
            "pip install huggingface_hub, which downloads it)"
        ) from None
    try:
        found = Path(
            snapshot_download(name, allow_patterns=[*_SMALL_FILES, "model*.safetensors", files.WEIGHTS + _INDEX])
        )
        if not any((found / file).is_file() for file in (files.WEIGHTS, files.WEIGHTS + _INDEX)):
            found = Path(snapshot_download(name, allow_patterns=[*_SMALL_FILES, "pytorch_model*.bin", PICKLE + _INDEX]))
    except Exception as error:  # the classes of several HTTP libraries
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(f"{source}: no such folder, nor could the hub give such a model ({reason})") from error
    return found


def read_tensors(folder: str | Path) -> tuple[dict[str, Tensor], str]:
    """Returns the tensors of a folder, on the CPU, and the file that they, or their index, came from.

    Reads model.safetensors, else its shards, else pytorch_model.bin, else its shards. Raises FileNotFoundError, or
    ValueError for a damaged file or a pickle of more than tensors, naming the file.
    """
    folder = Path(folder)
    for name, read in ((files.WEIGHTS, files.read_tensors), (PICKLE, _unpickle)):
        whole, index = folder / name, folder / f"{name}{_INDEX}"
        if whole.is_file():
            return read(whole), str(whole)
        if index.is_file():
            return _read_shards(index, read), str(index)
    raise FileNotFoundError(
        f"{folder}: no weights; {files.WEIGHTS} or {PICKLE} expected, or the {_INDEX[1:]} of its shards"
    )


def leave_out(
    tensors: dict[str, Tensor], drop: Sequence[str], source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Returns the tensors without those that `drop` names, and the names of the dropped ones.

    An entry of `drop` is the name of a tensor, or of a module such as "cls.species". Raises ValueError if one matches
    nothing.
    """
    dropped = []
    for entry in drop:
        matches = [name for name in tensors if name == entry or name.startswith(f"{entry}.")]
        if not matches:
            raise ValueError(f"drop: {source} has no tensor {entry!r}, nor one whose name begins with {entry + '.'!r}")
        dropped += matches
    return {name: tensor for name, tensor in tensors.items() if name not in dropped}, tuple(dict.fromkeys(dropped))


def _unpickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: a damaged file, or a pickle of more than tensors, which can run code; neither is loaded"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: not a file of torch.save, or a truncated one ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise ValueError(f"{path}: a dict of tensors expected, got a {type(content).__name__} of other things")
    return content


def _read_shards(index: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Reads the shards that an index lists. Each has the tensors listed for it, and no others."""
    try:
        shard_of = json.loads(index.read_text())["weight_map"]
        listed: dict[str, set[str]] = {}
        for tensor, file in shard_of.items():
            listed.setdefault(file, set()).add(tensor)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: a JSON object with a weight_map expected ({error!r})") from error
    tensors: dict[str, Tensor] = {}
    for file, names in sorted(listed.items()):
        if Path(file).name != file:
            raise ValueError(f"{index}: names of files beside it expected, got {file!r}")
        if not (index.parent / file).is_file():
            raise FileNotFoundError(f"{index.parent / file}: no such file, but {index.name} lists it")
        found = read(index.parent / file)
        problems = list_problems(missing=names - found.keys(), not_in_the_index=found.keys() - names)
        if problems:
            raise ValueError(f"{index.parent / file}: not the tensors that {index.name} lists: {problems}")
        tensors |= found
    return tensors
