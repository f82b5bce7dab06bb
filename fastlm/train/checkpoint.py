"""Checkpoints of a run: safetensors and JSON, written atomically, and verified before they are loaded.

    checkpoints/step-00000120/model/             config.json and model.safetensors, written by the model's `save`
                              optimizer.safetensors   "<state>/<parameter>", e.g. "exp_avg/blocks.0.out.weight"
                              rng.safetensors         torch's CPU generator and, on CUDA, the device's
                              state.json              step, what determines the run, the frozen parameters, each
                                                      file's size and CRC-32, each tensor's dtype and shape

The optimizer's file holds the optimizer's own state. A parameter that is frozen or had no gradient yet has no entry; a
shared parameter has one. The position in the data is the step, since batches are a pure function of it. Nothing is
pickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fastlm.backends import dtype_name
from fastlm.files import checksum, named_tensors, new_folder, remove_unfinished, write_json, write_tensors
from fastlm.run_folder import CHECKPOINT_FORMAT, CheckpointError, find_checkpoints, verify_checkpoint
from fastlm.train.run import list_differences

_MODEL, _OPTIMIZER, _RNG = "model/model.safetensors", "optimizer.safetensors", "rng.safetensors"


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    identity: Mapping[str, Any],
    keep: int = 2,
    **extra,
) -> Path:
    """Writes folder/step-N atomically, deletes all but the last `keep` checkpoints, and returns the path.

    identity: all that determines the run, as JSON; `load` compares it. `extra` goes into state.json. If its "best" has
    the "step" of the best checkpoint so far, that one is kept too, as is the one that each other kept checkpoint names.

    Raises OSError (a full disk, say), and CheckpointError if `model.save` left out a parameter or a persistent buffer;
    older checkpoints are then still there.
    """
    remove_unfinished(folder)
    final = checkpoint_of(folder, step)
    tensors = {
        _MODEL: named_tensors(model),
        _OPTIMIZER: _optimizer_state(model, optimizer),
        _RNG: _rng_state(next(model.parameters()).device),
    }
    with new_folder(final) as temporary:  # may replace the checkpoint of the same step, which has the same content
        model.save(temporary / "model")
        _check_same(temporary / _MODEL, _describe(_read(temporary / _MODEL)), _describe(tensors[_MODEL]), "the model")
        for name in (_OPTIMIZER, _RNG):
            write_tensors(temporary / name, tensors[name])
        state = {
            "format": CHECKPOINT_FORMAT,
            "step": step,
            "identity": dict(identity),
            **extra,
            "frozen": _frozen(model),
        }
        state["tensors"] = {name: _describe(of_file) for name, of_file in tensors.items()}
        state["files"] = {name: checksum(temporary / name) for name in _files(temporary)}
        write_json(temporary / "state.json", state)
    for old in _superseded(find_checkpoints(folder), keep):
        shutil.rmtree(old)
    return final


def checkpoint_of(folder: Path, step: int) -> Path:
    """Returns the path of the checkpoint after `step` updates."""
    return folder / f"step-{step:08d}"


def restore(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    identity: Mapping[str, Any],
    notify: Callable[[str], None],
) -> dict | None:
    """Loads the newest usable checkpoint and returns its state.json; returns None if there is no checkpoint.

    An unusable checkpoint is reported to `notify` and renamed to step-N.unusable, and the one before it is tried.
    Raises CheckpointError if there are checkpoints but none is usable: a run never silently starts from the beginning.
    """
    remove_unfinished(folder)
    checkpoints, reasons = find_checkpoints(folder), []
    for path in reversed(checkpoints):
        try:
            state = load(path, model, optimizer, identity=identity)
        except CheckpointError as error:
            notify(f"{error}; trying the checkpoint before it")
            reasons.append(str(error))
            continue
        for newer in checkpoints[checkpoints.index(path) + 1 :]:
            unusable = newer.with_name(newer.name + ".unusable")
            shutil.rmtree(unusable, ignore_errors=True)  # left by an earlier resume
            newer.rename(unusable)
        return state
    if checkpoints:
        raise CheckpointError(
            f"{folder}: none of its {len(checkpoints)} checkpoints can be used ({reasons[0]}); "
            "start anew in another run folder, or put intact ones there"
        )
    return None


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, identity: Mapping[str, Any]) -> dict:
    """Loads one checkpoint into model, optimizer and torch's generators; returns its state.json.

    Raises CheckpointError for a checkpoint that does not fit; then nothing has changed.
    """
    state = _verified(path, identity)
    if differing := set(state["frozen"]) ^ set(_frozen(model)):
        raise CheckpointError(f"{path}: {min(differing)!r} is frozen either there or in this run's model, not in both")
    device = next(model.parameters()).device
    own = named_tensors(model)
    stored = {_MODEL: _read_model(path, state, own)}
    for name in (_OPTIMIZER, _RNG):
        stored[name] = _read(path / name)
        _check_same(path / name, _describe(stored[name]), state["tensors"][name], "its state.json")
    _check_optimizer_state(path / _OPTIMIZER, stored[_OPTIMIZER], own, optimizer)
    rng = stored[_RNG]
    _copy(stored[_MODEL], own)
    optimizer.state.clear()
    for key, value in stored[_OPTIMIZER].items():
        kind, name = key.split("/", 1)
        optimizer.state[own[name]][kind] = value.to(device, copy=True)  # fused AdamW also keeps its step there
    torch.set_rng_state(rng["cpu"])
    if device.type == "cuda" and "cuda" in rng:
        torch.cuda.set_rng_state(rng["cuda"], device)
    return state


def load_model(path: Path, model: nn.Module, *, identity: Mapping[str, Any]) -> None:
    """Loads the model of one checkpoint, and nothing else of it. Raises CheckpointError as `load`."""
    state, own = _verified(path, identity), named_tensors(model)
    _copy(_read_model(path, state, own), own)


def _verified(path: Path, identity: Mapping[str, Any]) -> dict:
    state = verify_checkpoint(path)
    if different := list_differences(identity, state["identity"]):
        raise CheckpointError(
            f"{path}: the checkpoint is of another run: {', '.join(different)}; if config.json was edited, undo that"
        )
    return state


def _read_model(path: Path, state: dict, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stored = _read(path / _MODEL)
    _check_same(path / _MODEL, _describe(stored), state["tensors"][_MODEL], "its state.json")
    _check_same(path / _MODEL, _describe(stored), _describe(own), "this run's model")
    return stored


@torch.no_grad()
def _copy(stored: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    for name, tensor in own.items():
        tensor.copy_(stored[name])


def _superseded(checkpoints: list[Path], keep: int) -> list[Path]:
    """Returns the checkpoints that no resume needs: neither the last ones nor the best ones that these name."""
    best = {checkpoint_of(path.parent, _best_step(path)) for path in checkpoints[-keep:]}
    return [path for path in checkpoints[:-keep] if path not in best]


def _best_step(path: Path) -> int:
    """Returns the step of the best checkpoint that a checkpoint names; 0 if it names none or was damaged meanwhile."""
    try:
        return json.loads((path / "state.json").read_text())["best"]["step"] or 0
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns {"<state>/<parameter>": tensor}. Raises CheckpointError for state that cannot be saved."""
    parameters = dict(model.named_parameters())
    if optimizer.state.keys() - set(parameters.values()):
        raise CheckpointError("optimizer: it has state of parameters that are not the model's, which cannot be saved")
    state = {
        f"{kind}/{name}": value
        for name, parameter in parameters.items()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"optimizer: {key} is a {type(value).__name__}; only tensors can be saved")
    return state


def _check_optimizer_state(
    file: Path, stored: Mapping[str, Tensor], model: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Raises CheckpointError unless the optimizer has each parameter of the file, and each has its whole state.

    The state is what the file holds of any parameter: tensors of the parameter's shape, and numbers such as the step.
    """
    names = {id(tensor): name for name, tensor in model.items()}
    own = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
    found = {key: str(tuple(tensor.shape)) for key, tensor in stored.items()}
    kinds = {key.partition("/")[0] for key in found}
    numbers = kinds - {key.partition("/")[0] for key, shape in found.items() if shape != "()"}
    with_state = {key.partition("/")[2] for key in found} & own.keys()
    expected = {
        f"{kind}/{name}": str(() if kind in numbers else tuple(own[name].shape))
        for name in with_state
        for kind in kinds
    }
    _check_same(file, found, expected, "this run's optimizer")


def _frozen(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


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


def _describe(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns the dtype and shape of each tensor, e.g. "float32 (768, 3072)"."""
    return {name: f"{dtype_name(t.dtype)} {tuple(t.shape)}" for name, t in tensors.items()}


def _check_same(file: Path, found: Mapping[str, str], expected: Mapping[str, str], whose: str) -> None:
    """Raises CheckpointError for the first tensor that is not as expected; `whose` names the expecting side."""
    for name in sorted(found.keys() | expected.keys()):
        here, there = found.get(name, "(not there)"), expected.get(name, "(not there)")
        if here != there:
            raise CheckpointError(f"{file}: tensor {name!r} is {here} where {whose} has {there}")


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
