"""Checkpoints: exact, atomic, checked before they are believed, and never pickled."""

import json
import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastlm.train import checkpoint
from fastlm.train.checkpoint import CheckpointError
from fastlm.train.optim import build_optimizer

RECIPE = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


class Model(nn.Sequential):
    """Two matrices, one of them tied, and what a model of fastlm has: save."""

    def __init__(self, width=3):
        super().__init__(nn.Linear(4, width), nn.LayerNorm(width), nn.Linear(width, 4, bias=False))

    def save(self, folder):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        save_file({name: p.detach() for name, p in self.named_parameters()}, folder / "model.safetensors")


def make(kind="adamw", seed=0, width=3):
    torch.manual_seed(seed)
    model = Model(width)
    return model, build_optimizer([(model.parameters(), 1.0)], bias_correction=kind == "adamw", **RECIPE)


def train(model, optimizer, updates):
    """Updates whose data comes from torch's generator, so that its state matters."""
    losses = []
    for _ in range(updates):
        optimizer.zero_grad()
        loss = model(torch.randn(5, 4)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def save(folder, step, model, optimizer, run_hash="run"):
    return checkpoint.save(folder, step, model, optimizer, run_hash=run_hash, tokens=10 * step)


def restore(folder, model, optimizer, run_hash="run", notes=None):
    return checkpoint.restore(
        folder, model, optimizer, run_hash=run_hash, notify=(notes if notes is not None else []).append
    )


@pytest.mark.parametrize("kind", ["adamw", "bert"])
def test_training_goes_on_bit_for_bit(tmp_path, kind):
    model, optimizer = make(kind)
    train(model, optimizer, 3)
    save(tmp_path, 3, model, optimizer)
    expected = train(model, optimizer, 4)
    other, other_optimizer = make(kind, seed=1)
    state = restore(tmp_path, other, other_optimizer)
    assert (state["step"], state["tokens"]) == (3, 30)
    assert train(other, other_optimizer, 4) == expected
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_last_two_are_kept(tmp_path):
    model, optimizer = make()
    train(model, optimizer, 1)
    for step in (5, 10, 15, 20):
        save(tmp_path, step, model, optimizer)
    assert [path.name for path in checkpoint.find(tmp_path)] == ["step-00000015", "step-00000020"]


def test_nothing_there_is_none(tmp_path):
    assert restore(tmp_path / "checkpoints", *make()) is None


def test_one_that_was_being_written_is_ignored_and_removed(tmp_path):
    model, optimizer = make()
    train(model, optimizer, 1)
    save(tmp_path, 1, model, optimizer)
    unfinished = tmp_path / ".writing-2"
    unfinished.mkdir()
    (unfinished / "optimizer.safetensors").write_bytes(b"half")
    assert restore(tmp_path, *make())["step"] == 1
    assert not unfinished.exists()


def truncate(path):
    file = path / "optimizer.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-7])
    return f"optimizer.safetensors: {len(content) - 7} bytes where {len(content)} bytes were written"


def flip_a_bit(path):
    file = path / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return "model.safetensors: damaged"


def remove_a_file(path):
    (path / "rng.safetensors").unlink()
    return "rng.safetensors: missing"


def break_the_state(path):
    (path / "state.json").write_text('{"step": ')
    return "not a checkpoint of fastlm"


def make_foreign(path):
    (path / "state.json").write_text('{"global_step": 7}')
    return "not a checkpoint of fastlm"


def make_newer(path):
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "format": 99}))
    return "checkpoint format 99; this fastlm reads format 1"


def give_it_to_another_run(path):
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "run_hash": "other"}))
    return "of another run"


def pickle_it(path):
    """A pickle in a safetensors file's place, with sums that agree: unpickling it would leave a trace."""
    file = path / "optimizer.safetensors"
    file.write_bytes(pickle.dumps(_Trace(path / "unpickled")))
    state = json.loads((path / "state.json").read_text())
    state["files"]["optimizer.safetensors"] = checkpoint._checksum(file)
    (path / "state.json").write_text(json.dumps(state))
    return "not a safetensors file"


class _Trace:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (os.mkdir, (str(self.file),))


DAMAGES = [
    truncate,
    flip_a_bit,
    remove_a_file,
    break_the_state,
    make_foreign,
    make_newer,
    give_it_to_another_run,
    pickle_it,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_unusable_one_is_named_and_the_one_before_it_is_used(tmp_path, damage):
    model, optimizer = make()
    train(model, optimizer, 1)
    save(tmp_path, 1, model, optimizer)
    expected = train(model, optimizer, 1)
    path = save(tmp_path, 2, model, optimizer)
    sentence, notes = damage(path), []
    other, other_optimizer = make(seed=1)
    assert restore(tmp_path, other, other_optimizer, notes=notes)["step"] == 1
    assert len(notes) == 1 and sentence in notes[0] and "step-00000002" in notes[0] and "\n" not in notes[0]
    assert train(other, other_optimizer, 1) == expected
    assert not list(tmp_path.rglob("unpickled"))
    # It is out of the way, not gone, and the next ones are kept as ever.
    assert (tmp_path / "step-00000002.unusable").is_dir()
    save(tmp_path, 2, other, other_optimizer)
    assert [p.name for p in checkpoint.find(tmp_path)] == ["step-00000001", "step-00000002"]


def test_if_none_is_usable_nothing_starts_anew_in_silence(tmp_path):
    model, optimizer = make()
    train(model, optimizer, 1)
    truncate(save(tmp_path, 1, model, optimizer))
    fresh, fresh_optimizer = make()
    before = [p.clone() for p in fresh.parameters()]
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints can be used"):
        restore(tmp_path, fresh, fresh_optimizer)
    assert all(torch.equal(p, b) for p, b in zip(fresh.parameters(), before, strict=True))
    assert (tmp_path / "step-00000001").is_dir()


@pytest.mark.parametrize(
    ("kind", "width", "sentence"),
    [
        ("adamw", 5, r"tensor '0.bias' has shape \(3,\) where this run's model needs \(5,\)"),
        ("bert", 3, "'step/0.bias' has shape"),
    ],
)
def test_a_checkpoint_of_another_model_or_optimizer_is_refused_unchanged(tmp_path, kind, width, sentence):
    model, optimizer = make()
    train(model, optimizer, 1)
    path = save(tmp_path, 1, model, optimizer)
    other, other_optimizer = make(kind, width=width)
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(CheckpointError, match=sentence):
        checkpoint.load(path, other, other_optimizer, run_hash="run")
    assert all(torch.equal(p, b) for p, b in zip(other.parameters(), before, strict=True))


FULL_DISK = """
    import resource, signal, sys
    from pathlib import Path
    import test_checkpoint as t
    folder = Path(sys.argv[1])
    model, optimizer = t.make()
    t.train(model, optimizer, 1)
    t.save(folder, 1, model, optimizer)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in (100, 500, 2000):  # in the model's, the optimizer's and the generator's file
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            t.save(folder, 2, model, optimizer)
        except OSError as error:
            print(error.errno, sorted(p.name for p in folder.iterdir()))
"""


def test_a_full_disk_is_an_os_error_and_leaves_what_was_there(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.stdout.splitlines() == ["27 ['step-00000001']"] * 3, result.stderr
    assert restore(tmp_path, *make())["step"] == 1
