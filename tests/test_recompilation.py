"""Each Triton kernel is compiled once for all numbers of tokens.

Triton compiles a kernel again if an argument's type changes, or a property that it specialises on: being 1, or being
divisible by 16. Another process, without the interpreter, runs every op forward and backward at several numbers of
tokens and counts the kernels that Triton would compile. Nothing is compiled or launched, so no GPU is needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

import fastlm
from fastlm import backends
from fastlm.ops import SPECS

ROOT = Path(__file__).parent.parent
TOKENS = (48, 1, 17, 64, 300)  # among them 1, an odd number, multiples of 16, and more than a grid has programs


@pytest.fixture(scope="module")
def compilations() -> dict[str, list[int]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    run = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_one_compilation_for_all_numbers_of_tokens(compilations):
    for call, (first, *rest) in compilations.items():
        if not call.endswith("widths"):
            assert first > 0, call
            assert rest == [first] * len(rest), call


def test_every_op_is_called():
    served = {op for op, spec in SPECS.items() if "triton" in spec.limits}
    assert {call.partition(" ")[0] for call in CALLS} == served


def test_other_widths_are_compiled(compilations):
    """Checks the counting: each width needs three kernels, the forward, the backward and the sum of its partials."""
    assert compilations["layer_norm of other widths"] == [3, 6, 9, 12, 15]


def _rows(tokens: int, columns: int = 64) -> Tensor:
    return torch.randn(tokens, columns, dtype=torch.float16, requires_grad=True)


def _vector(size: int = 64) -> Tensor:
    return torch.ones(size, requires_grad=True)


def _seed(tokens: int) -> Tensor:
    """Returns a seed that is aligned to 16 bytes for even `tokens` only, as a view of one site among many may be."""
    return torch.tensor([1, 2])[tokens % 2 :][:1]


def _add_layer_norm(tokens: int) -> Tensor:
    dropout = {"dropout_p": 0.1, "seed": _seed(tokens), "first_row": _seed(tokens)}
    return fastlm.add_layer_norm(_rows(tokens), _rows(tokens), _vector(), _vector(), bias=_vector(), **dropout)


def _embedding_layer_norm(tokens: int) -> Tensor:
    ids = torch.arange(4 * tokens).view(tokens, 4) % 7
    parts = {"position": _rows(4), "segment": _rows(2), "segments": ids % 2}
    norm = {"gamma": _vector(), "beta": _vector(), "dropout_p": 0.1, "seed": _seed(tokens), "first_row": _seed(tokens)}
    return fastlm.embedding_layer_norm(ids, _rows(7), **parts, **norm)


def _attention(batch: int, sequence: int) -> Tensor:
    q, k, v = (torch.randn(batch, sequence, 2, 64, dtype=torch.float16, requires_grad=True) for _ in range(3))
    lengths = torch.full((batch,), sequence, dtype=torch.int32)
    dropout = {"dropout_p": 0.1, "seed": _seed(batch + sequence), "first_sequence": _seed(batch)}
    return fastlm.attention(q, k, v, lengths=lengths, **dropout)


def _attention_packed(batch: int, sequence: int) -> Tensor:
    qkv = torch.randn(batch, sequence, 3, 2, 64, dtype=torch.float16, requires_grad=True)
    dropout = {"dropout_p": 0.1, "seed": _seed(batch + sequence), "first_sequence": _seed(batch)}
    return fastlm.attention_packed(qkv, causal=True, **dropout)


def _linear_cross_entropy(tokens: int) -> Tensor:
    return fastlm.linear_cross_entropy(_rows(tokens), _rows(100), torch.zeros(tokens, dtype=torch.int64))


def _cross_entropy(tokens: int) -> Tensor:
    return fastlm.cross_entropy(_rows(tokens), torch.zeros(tokens, dtype=torch.int64))


def _adamw(tokens: int) -> Tensor:
    """Updates one parameter of this size. adamw has no derivative, so this returns a tensor on which `main` can call
    backward()."""
    tensors = [[torch.zeros(size)] for size in (tokens,) * 4]
    numbers = {name: torch.full((1,), 0.1) for name in ("rates", "decays")}
    fastlm.adamw(*tensors, **numbers, betas=(0.9, 0.999), eps=1e-8, max_norm=torch.ones(()))
    return torch.zeros((), requires_grad=True)


CALLS: dict[str, Callable[[int], Tensor]] = {
    "attention of more sequences": lambda tokens: _attention(tokens, 32),
    "attention of sequences of one block": lambda tokens: _attention(2, min(tokens, 128)),
    "attention of longer sequences": lambda tokens: _attention(2, 128 + tokens),
    "attention_packed of more sequences": lambda tokens: _attention_packed(tokens, 32),
    "attention_packed of sequences of one block": lambda tokens: _attention_packed(2, min(tokens, 128)),
    "attention_packed of longer sequences": lambda tokens: _attention_packed(2, 128 + tokens),
    "layer_norm": lambda tokens: fastlm.layer_norm(_rows(tokens), _vector(), _vector()),
    "add_layer_norm": _add_layer_norm,
    "gelu_layer_norm": lambda tokens: fastlm.gelu_layer_norm(_rows(tokens), _vector(), _vector(), bias=_vector()),
    "layer_norm_gelu": lambda tokens: fastlm.layer_norm_gelu(_rows(tokens), _vector(), _vector()),
    "bias_gelu": lambda tokens: fastlm.bias_gelu(_rows(tokens), _vector()),
    "embedding_layer_norm": _embedding_layer_norm,
    "linear_cross_entropy": _linear_cross_entropy,
    "cross_entropy": _cross_entropy,
    "adamw": _adamw,
    "layer_norm of other widths": lambda tokens: fastlm.layer_norm(_rows(4, columns=tokens), _vector(tokens)),
}


def main() -> None:
    """Prints as JSON, for each call, how many compilations it has asked for after each number of tokens."""
    from triton import knobs
    from triton.runtime.driver import driver

    from benchmarks.resources._compile import NoDevice

    asked: set[str] = set()

    def note(*, key: str, fn, **_: object) -> bool:
        asked.add(f"{fn.name} {key}")
        return True  # tells Triton not to compile

    counts: dict[str, list[int]] = {}
    with (
        mock.patch.object(knobs.runtime, "jit_cache_hook", note),
        mock.patch.object(driver, "_active", NoDevice(90)),
        mock.patch.object(backends, "interpreted", lambda: True),  # so that "triton" accepts CPU tensors
        backends.use_backend("triton"),
    ):
        for op, call in CALLS.items():
            asked.clear()
            counts[op] = []
            for tokens in TOKENS:
                call(tokens).float().sum().backward()
                counts[op].append(len(asked))
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
