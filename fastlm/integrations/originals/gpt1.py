"""OpenAI's GPT-1 checkpoint: params_0.npy to params_9.npy, params_shapes.json, and the vocabulary beside them.

The parts, joined, are one vector of float32. The shapes, in this order, cut it into arrays:

    shape            ours                      stored
    (S, E)           embedding.position        as here
    (V, E)           embedding.word            as here
    then, for each layer i, blocks.i.
    (1, E, 3E) (3E)  attention.qkv             weight transposed; q, k, v side by side
    (1, E, E) (E)    attention.out             weight transposed
    (E) (E)          attention_norm            gain, then bias
    (1, E, I) (I)    mlp.up                    weight transposed
    (1, I, E) (E)    mlp.down                  weight transposed
    (E) (E)          mlp_norm                  gain, then bias

The output layer is the word embedding. The files do not hold the number of heads, epsilon and dropout: the code that
wrote them has heads of width 64, an epsilon of 1e-5 and a dropout of 0.1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastlm.files import new_file, write_json
from fastlm.models import GPT1, GPT1Config, from_weights, pretraining_heads

SHAPES = "params_shapes.json"
PARTS = 10
_HEAD_DIM, _EPS = 64, 1e-5


def read_openai(folder: str | Path, *, backend: str = "auto") -> GPT1:
    """Returns the model of a folder, in eval mode, with its output layer as the head "lm".

    Raises FileNotFoundError, or ValueError, naming the file, for missing, damaged or foreign files.
    """
    folder = Path(folder)
    shapes = _read_shapes(folder / SHAPES)
    config = _config_of(shapes, folder / SHAPES)
    flat = torch.from_numpy(_read_parts(folder, sum(map(math.prod, shapes))))
    weights = {}
    arrays = flat.split([math.prod(shape) for shape in shapes])
    for (name, _), array, shape in zip(_layout(config), arrays, shapes, strict=True):
        array = array.view(shape)
        weights[name] = (array[0].t() if len(shape) == 3 else array).clone(memory_format=torch.contiguous_format)
    heads = pretraining_heads(config, backend=backend)
    return from_weights(config, weights, heads, backend=backend, source=str(folder)).eval()


def write_openai(model: GPT1, folder: str | Path) -> None:
    """Writes a model's parts and shapes, each atomically. Weights become float32.

    Raises OSError, or ValueError for a model that the format cannot hold: heads of another width than 64, another
    epsilon, an MLP that is not four times as wide, or heads with parameters.
    """
    config = model.config
    if not isinstance(config, GPT1Config):
        raise ValueError(f"model: a GPT1 expected for OpenAI's format, got a {type(model).__name__}")
    _check_representable(model)
    parameters, layout = dict(model.named_parameters()), list(_layout(config))
    arrays = [_as_stored(parameters[name], shape).flatten() for name, shape in layout]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(np.array_split(torch.cat(arrays).numpy(), PARTS)):
        with new_file(folder / f"params_{number}.npy") as path, path.open("wb") as file:
            np.save(file, part, allow_pickle=False)
    write_json(folder / SHAPES, [list(shape) for _, shape in layout])


def _layout(config: GPT1Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields our name and the stored shape of each array, in the order of the files."""
    width, inner = config.hidden, config.intermediate
    yield "embedding.position", (config.context, width)
    yield "embedding.word", (config.vocab_size, width)
    modules = {
        "attention.qkv": (1, width, 3 * width),
        "attention.out": (1, width, width),
        "attention_norm": (width,),
        "mlp.up": (1, width, inner),
        "mlp.down": (1, inner, width),
        "mlp_norm": (width,),
    }
    for i in range(config.layers):
        for name, shape in modules.items():
            yield f"blocks.{i}.{name}.weight", shape
            yield f"blocks.{i}.{name}.bias", shape[-1:]


def _config_of(shapes: list[tuple[int, ...]], path: Path) -> GPT1Config:
    """Returns the configuration whose arrays have these shapes. Raises ValueError for shapes of no GPT-1."""
    layers, rest = divmod(len(shapes) - 2, 12)
    if layers < 1 or rest or any(len(shape) != 2 for shape in shapes[:2]):
        raise ValueError(f"{path}: two embeddings and 12 arrays per layer expected, got {len(shapes)} shapes")
    (context, hidden), (vocab_size, _) = shapes[:2]
    if hidden % _HEAD_DIM:
        raise ValueError(f"{path}: a width that is a multiple of {_HEAD_DIM} expected, got {hidden}")
    config = GPT1Config(
        vocab_size=vocab_size, context=context, layers=layers, hidden=hidden, heads=hidden // _HEAD_DIM,
        intermediate=4 * hidden, eps=_EPS,
    )  # fmt: skip
    for number, ((name, expected), shape) in enumerate(zip(_layout(config), shapes, strict=True)):
        if shape != expected:
            raise ValueError(f"{path}: shape {number}, of {name}: {list(expected)} expected, got {list(shape)}")
    return config


def _read_shapes(path: Path) -> list[tuple[int, ...]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it goes with params_0.npy to params_{PARTS - 1}.npy")
    try:
        shapes = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    valid = isinstance(shapes, list) and all(
        isinstance(shape, list) and shape and all(type(n) is int and n > 0 for n in shape) for shape in shapes
    )
    if not valid:
        raise ValueError(f"{path}: a list of shapes expected, each a list of positive integers")
    return [tuple(shape) for shape in shapes]


def _read_parts(folder: Path, size: int) -> np.ndarray:
    """Returns the parts as one vector. Raises ValueError unless it has `size` numbers."""
    parts = []
    for number in range(PARTS):
        path = folder / f"params_{number}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; params_0.npy to params_{PARTS - 1}.npy expected")
        try:
            part = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{path}: not an array of numpy, or a truncated one ({error})") from error
        if not isinstance(part, np.ndarray) or part.dtype != np.float32 or part.ndim != 1:
            found = f"{part.dtype} of shape {part.shape}" if isinstance(part, np.ndarray) else type(part).__name__
            raise ValueError(f"{path}: a vector of float32 expected, got {found}")
        parts.append(part)
    flat = np.concatenate(parts)
    if flat.size != size:
        raise ValueError(f"{folder}: {size} numbers expected, as {SHAPES} says, but the parts have {flat.size}")
    return flat


def _as_stored(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    tensor = tensor.detach().to("cpu", torch.float32)
    return (tensor.t() if len(shape) == 3 else tensor).reshape(shape)


def _check_representable(model: GPT1) -> None:
    config = model.config
    wanted = {"heads": config.hidden / _HEAD_DIM, "eps": _EPS, "intermediate": 4 * config.hidden}
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise ValueError(f"{name} must be {value:g} in OpenAI's format, got {getattr(config, name)}")
    extra = [name for name, head in model.heads.items() if list(head.parameters())]
    if extra:
        raise ValueError(f"heads: OpenAI's format holds no head with parameters, got {', '.join(extra)}; drop it")
