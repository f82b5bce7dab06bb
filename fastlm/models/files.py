"""A model's folder: config.json and model.safetensors, written atomically. Pickles are never loaded.

safetensors is imported when a file is written or read, so that models without files need only torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastlm._options import list_problems
from fastlm.files import named_tensors, write_json, write_tensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_PICKLES = (
    b"PK\x03\x04",
    b"\x80",
)  # first bytes of torch.save's files: a zip archive, or before torch 1.6 a bare pickle


def write(folder: str | Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Writes both files, each atomically; makes the folder if needed.

    Raises OSError (a full disk, no permission) that names the file; its previous content is then still there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, weights)
    write_json(folder / CONFIG, config)


def read_config(folder: str | Path) -> dict[str, Any]:
    """Returns config.json of a model's folder. Raises FileNotFoundError or ValueError, naming the file."""
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
    """Returns the tensors of model.safetensors, on the CPU. Raises OSError or ValueError, naming the file."""
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        pickles = sorted(p.name for p in path.parent.glob("*.bin"))
        also = f"; {', '.join(pickles)} beside it may be pickles, which are never loaded" if pickles else ""
        raise FileNotFoundError(f"{path}: no such file{also}")
    return read_tensors(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file, on the CPU. Raises OSError or ValueError, naming the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path.open("rb").close()  # raises PermissionError, where safetensors would say that there is no such file
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


def check_names(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Raises ValueError unless both have the same names and shapes; the message lists all differences."""
    shapes = {name: tuple(t.shape) for name, t in expected.items()}
    wrong = [
        f"{name} {tuple(t.shape)}, not {shapes[name]}"
        for name, t in found.items()
        if name in shapes and tuple(t.shape) != shapes[name]
    ]
    missing, unknown = expected.keys() - found.keys(), found.keys() - expected.keys()
    problems = list_problems(missing=missing, unknown=unknown, of_another_shape=wrong)
    if problems:
        raise ValueError(f"{source}: not the tensors of this model: {problems}")


def assign_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Makes the given tensors, not copies, the parameters and persistent buffers of the model; ties stay tied.

    source: the origin of the weights, named in errors. Raises ValueError if the names or shapes are not those of
    `named_tensors(model)`.
    """
    expected = named_tensors(model)
    check_names(weights, expected, source)
    given = {}
    for name, tensor in expected.items():
        is_parameter = isinstance(tensor, nn.Parameter)
        given[id(tensor)] = nn.Parameter(weights[name], tensor.requires_grad) if is_parameter else weights[name]
    tensors = {name: given[id(tensor)] for name, tensor in model.state_dict(keep_vars=True).items()}
    model.load_state_dict(tensors, assign=True)
