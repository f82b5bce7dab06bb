"""Checkpoints of a run: safetensors and JSON, written whole or not at all, checked before they are believed.

    checkpoints/step-00000120/model/             config.json and model.safetensors, as Model.save writes them
                              optimizer.safetensors   "<state>/<parameter>", e.g. "exp_avg/blocks.0.out.weight"
                              rng.safetensors         torch's CPU generator and, on CUDA, the device's
                              state.json              step, the run's hash, and each file's size and CRC-32

The data's position is the step: batches are a pure function of it. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastlm.train.optim import bias_corrected

FORMAT = 1
_NAME = re.compile(r"step-(\d+)")


class CheckpointError(ValueError):
    """A checkpoint that is truncated, damaged, foreign or not there; the sentence says which."""


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    run_hash: str,
    keep: int = 2,
    **extra,
) -> Path:
    """Writes folder/step-N and keeps the last `keep`; returns its path. `extra` goes into state.json.

    It is written under a temporary name, synced to the disk and renamed, so that a checkpoint is whole or not there.
    Raises OSError (a full disk, say), with everything written before still in place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(folder)
    temporary = folder / f".writing-{step}"
    temporary.mkdir()
    try:
        with os_errors():
            model.save(temporary / "model")
            save_file(_optimizer_state(model, optimizer), temporary / "optimizer.safetensors")
            save_file(_rng_state(next(model.parameters()).device), temporary / "rng.safetensors")
        files = {name: _checksum(temporary / name) for name in _files(temporary)}
        state = {"format": FORMAT, "step": step, "run_hash": run_hash, **extra, "files": files}
        (temporary / "state.json").write_text(json.dumps(state, indent=1))
        sync_tree(temporary)
        final = folder / f"step-{step:08d}"
        if final.exists():  # the same step of the same run: the same content
            shutil.rmtree(final)
        temporary.rename(final)
        sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in find(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def find(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first. Those being written when a process died are not among them."""
    found = {int(match[1]): path for path in _entries(folder) if (match := _NAME.fullmatch(path.name))}
    return [found[step] for step in sorted(found)]


def restore(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    run_hash: str,
    notify: Callable[[str], None],
) -> dict | None:
    """Loads the newest usable checkpoint and returns its state.json; None if there is none at all.

    An unusable one is named to `notify`, renamed to step-N.unusable, and the one before it is used. Raises
    CheckpointError if there are checkpoints and none is usable: a run never starts anew in silence.
    """
    _remove_unfinished(folder)
    checkpoints = find(folder)
    for path in reversed(checkpoints):
        try:
            state = load(path, model, optimizer, run_hash=run_hash)
        except CheckpointError as error:
            notify(f"{error}; trying the checkpoint before it")
            continue
        for newer in checkpoints[checkpoints.index(path) + 1 :]:
            unusable = newer.with_name(newer.name + ".unusable")
            shutil.rmtree(unusable, ignore_errors=True)  # of an earlier time
            newer.rename(unusable)
        return state
    if checkpoints:
        raise CheckpointError(
            f"{folder}: none of its {len(checkpoints)} checkpoints can be used; "
            "start anew in another run folder, or put intact ones there"
        )
    return None


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, run_hash: str) -> dict:
    """Loads one checkpoint into model, optimizer and torch's generators; returns its state.json.

    Raises CheckpointError before it has changed anything.
    """
    state = verify(path)
    if state["run_hash"] != run_hash:
        raise CheckpointError(f"{path}: the checkpoint is of another run (its configuration differs)")
    device = next(model.parameters()).device
    parameters = dict(model.named_parameters())
    weights = _matching(path / "model" / "model.safetensors", {n: p.shape for n, p in parameters.items()})
    moments = _matching(path / "optimizer.safetensors", _optimizer_shapes(model, optimizer))
    rng = _read(path / "rng.safetensors")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    for key, value in moments.items():
        kind, name = key.split("/", 1)
        parameter = parameters[name]
        optimizer.state[parameter][kind] = value.to(device)  # the fused AdamW's step is there too
    torch.set_rng_state(rng["cpu"])
    if device.type == "cuda" and "cuda" in rng:
        torch.cuda.set_rng_state(rng["cuda"], device)
    return state


def verify(path: Path) -> dict:
    """The state.json of a checkpoint whose files all have the size and the CRC-32 that it gives."""
    try:
        state = json.loads((path / "state.json").read_text())
        files = dict(state["files"])
        int(state["step"]), str(state["run_hash"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of fastlm (state.json: {error})") from error
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {state.get('format')!r}; this fastlm reads format {FORMAT}")
    for name, expected in files.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != expected["bytes"]:
            found = "missing" if size is None else f"{size} bytes"
            raise CheckpointError(f"{file}: {found} where {expected['bytes']} bytes were written")
        if _checksum(file) != expected:
            raise CheckpointError(f"{file}: damaged: its CRC-32 is not the one that was written")
    return state


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """Turns the file errors that safetensors raises as its own class into the OSError that they are."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def sync(path: Path) -> None:
    """fsync of a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """fsync of all that a folder holds, then of the folder."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(root) / name)
        sync(Path(root))


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{kind}/{name}": value.contiguous()
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state[parameter].items()
    }


def _optimizer_shapes(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Size]:
    """What the state of the optimizer after a step would be; its class says it, not the file."""
    kinds = ["exp_avg", "exp_avg_sq"] + (["step"] if bias_corrected(optimizer) else [])
    return {
        f"{kind}/{name}": torch.Size([]) if kind == "step" else parameter.shape
        for name, parameter in model.named_parameters()
        for kind in kinds
    }


def _rng_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a safetensors file that can be read ({error})") from error


def _matching(file: Path, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    tensors = _read(file)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes:
        name = min(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))
        raise CheckpointError(
            f"{file}: tensor {name!r} has shape {_shape(found.get(name))} "
            f"where this run's model needs {_shape(shapes.get(name))}"
        )
    return tensors


def _shape(shape: torch.Size | None) -> str:
    return "(not there)" if shape is None else str(tuple(shape))


def _checksum(file: Path) -> dict[str, int]:
    crc = size = 0
    with open(file, "rb") as stream:
        while block := stream.read(1 << 22):
            crc = zlib.crc32(block, crc)
            size += len(block)
    return {"bytes": size, "crc32": crc}


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _remove_unfinished(folder: Path) -> None:
    for path in _entries(folder):
        if path.name.startswith(".writing-"):
            shutil.rmtree(path)
