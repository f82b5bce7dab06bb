"""A model's folder: config.json and model.safetensors, written whole or not at all. Pickles are never loaded.

safetensors is imported when a file is written or read: a model that is not needs no more than torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_PICKLES = (b"PK\x03\x04", b"\x80")  # what torch.save writes: a zip archive, and before torch 1.6 a bare pickle


def write(folder: str | Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write both files, each to a temporary name that then replaces the old file; make the folder if need be.

    Raises OSError (disk full, no permission...); then what was there before is still whole.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in weights.items()}
    _replace(folder / WEIGHTS, lambda path: _write_tensors(tensors, path))
    _replace(folder / CONFIG, lambda path: _write_json(config, path))


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a model's folder. Raises FileNotFoundError or ValueError, naming the file."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a model's folder holds {CONFIG} and {WEIGHTS}")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: a JSON object expected, got a {type(config).__name__}")
    return config


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of model.safetensors, on the CPU. Raises FileNotFoundError or ValueError, naming the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / WEIGHTS
    if not path.is_file():
        pickles = sorted(p.name for p in path.parent.glob("*.bin"))
        also = f"; {', '.join(pickles)} beside it may be pickles, which are never loaded" if pickles else ""
        raise FileNotFoundError(f"{path}: no such file{also}")
    try:
        return load_file(path)
    except SafetensorError as error:
        with path.open("rb") as file:
            is_pickle = file.read(4).startswith(_PICKLES)
        if is_pickle:
            raise ValueError(
                f"{path}: a pickle, which is never loaded, as it can run code; safetensors expected"
            ) from error
        raise ValueError(f"{path}: not a safetensors file, or a truncated one ({error})") from error


def check_names(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """The same names, and the same shape under each. Raises ValueError with the list of what is not so."""
    shapes = {name: tuple(t.shape) for name, t in expected.items()}
    wrong = [
        f"{name} {tuple(t.shape)}, not {shapes[name]}"
        for name, t in found.items()
        if name in shapes and tuple(t.shape) != shapes[name]
    ]
    kinds = {
        "missing": sorted(expected.keys() - found.keys()),
        "unknown": sorted(found.keys() - expected.keys()),
        "of another shape": sorted(wrong),
    }
    problems = [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise ValueError(f"{what}: not the tensors of this model: {'; '.join(problems)}")


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        error.filename = str(path)  # not the temporary one
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises OSError for what safetensors reports as its own class: a full disk, say."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]), os.strerror(int(number[1]))) if number else error from error


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _sync(path: Path) -> None:
    """Have the disk hold the file's bytes before its name says so, and the name before this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
