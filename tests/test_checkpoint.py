"""Checkpoints: exact, atomic, verified before they are loaded, and never pickled."""

import json
import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastlm.files import named_tensors, write_tensors
from fastlm.run_folder import find_checkpoints
from fastlm.train import checkpoint
from fastlm.train.checkpoint import CheckpointError
from fastlm.train.optim import build_optimizer

RECIPE = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


class Saved(nn.Module):
    """Has `save`, as fastlm's models."""

    def save(self, folder):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        write_tensors(folder / "model.safetensors", named_tensors(self))


class Model(nn.Sequential, Saved):
    """A model of two matrices and a layer norm."""

    def __init__(self, width=3):
        super().__init__(nn.Linear(4, width), nn.LayerNorm(width), nn.Linear(width, 4, bias=False))


class Heads(Saved):
    """A model of ids 0 to 10: an embedding, a layer used twice, a tied output, a buffer and two more heads."""

    def __init__(self, *, freeze=()):
        super().__init__()
        self.table = nn.Embedding(11, 4)
        self.first = self.second = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.output = nn.Linear(4, 11, bias=False)
        self.output.weight = self.table.weight
        self.late, self.unused = nn.Linear(4, 1), nn.Linear(4, 2)
        for name in freeze:
            self.get_parameter(name).requires_grad_(False)

    def forward(self, ids, *, late):
        x = self.norm(self.second(self.first(self.table(ids))))
        loss = nn.functional.cross_entropy(self.output(x), ids)
        return loss + self.late(x).square().mean() if late else loss


def make(kind="adamw", seed=0, width=3):
    torch.manual_seed(seed)
    model = Model(width)
    return model, build_optimizer([(model.parameters(), 1.0)], bias_correction=kind == "adamw", **RECIPE)


def train(model, optimizer, updates):
    """Makes updates on data from torch's generator, whose state a checkpoint must therefore restore."""
    losses = []
    for _ in range(updates):
        optimizer.zero_grad()
        loss = model(torch.randn(5, 4)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def make_heads(kind="adamw", seed=0, **options):
    torch.manual_seed(seed)
    model = Heads(**options)
    return model, build_optimizer([(model.parameters(), 1.0)], bias_correction=kind == "adamw", **RECIPE)


def train_heads(model, optimizer, steps, late=4):
    """Makes updates; only those from `late` on give the late head a gradient."""
    for step in steps:
        optimizer.zero_grad(set_to_none=True)
        model(torch.randint(11, (8,)), late=step >= late).backward()
        optimizer.step()


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


FROZEN = {"nothing": (), "embedding": ("table.weight",), "layer": ("first.weight", "first.bias")}


@pytest.mark.parametrize("kind", ["adamw", "bert"])
@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("saved_at", [2, 6], ids=["before the late head", "after it"])
def test_frozen_unused_late_and_shared_parameters_and_buffers_go_on_bit_for_bit(tmp_path, kind, frozen, saved_at):
    model, optimizer = make_heads(kind, freeze=FROZEN[frozen])
    train_heads(model, optimizer, range(saved_at))
    path = save(tmp_path, saved_at, model, optimizer)
    stored = load_file(path / "optimizer.safetensors")
    with_state = {key.split("/")[1] for key in stored}
    late = {"late.weight", "late.bias"} if saved_at > 4 else set()
    used = {"table.weight", "first.weight", "first.bias", "norm.weight", "norm.bias"}
    assert with_state == used - set(FROZEN[frozen]) | late
    assert "output.weight" not in load_file(path / "model" / "model.safetensors")
    train_heads(model, optimizer, range(saved_at, 10))

    other, other_optimizer = make_heads(kind, seed=1, freeze=FROZEN[frozen])
    assert restore(tmp_path, other, other_optimizer)["step"] == saved_at
    assert other.first is other.second and other.output.weight is other.table.weight
    train_heads(other, other_optimizer, range(saved_at, 10))
    expected = model.state_dict()
    assert int(expected["norm.num_batches_tracked"]) == 10
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_state_that_the_optimizer_had_before_is_gone(tmp_path):
    """Otherwise a parameter without state in the checkpoint would keep its state from before loading."""
    model, optimizer = make_heads()
    train_heads(model, optimizer, range(2))
    save(tmp_path, 2, model, optimizer)
    train_heads(model, optimizer, range(2, 6))
    assert optimizer.state[model.late.weight]
    restore(tmp_path, model, optimizer)
    assert not optimizer.state.get(model.late.weight)


def test_the_last_two_are_kept(tmp_path):
    model, optimizer = make()
    train(model, optimizer, 1)
    for step in (5, 10, 15, 20):
        save(tmp_path, step, model, optimizer)
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000015", "step-00000020"]


def test_nothing_there_is_none(tmp_path):
    assert restore(tmp_path / "checkpoints", *make()) is None


def test_one_that_was_being_written_is_ignored_and_removed(tmp_path):
    model, optimizer = make()
    train(model, optimizer, 1)
    save(tmp_path, 1, model, optimizer)
    unfinished = tmp_path / ".step-00000002.partial"
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
    return f"checkpoint format 99; this fastlm reads format {checkpoint.FORMAT}"


def forget_the_tensors(path):
    state = json.loads((path / "state.json").read_text())
    del state["tensors"]
    (path / "state.json").write_text(json.dumps(state))
    return "state.json has no 'tensors'"


def record_another_dtype(path):
    state = json.loads((path / "state.json").read_text())
    state["tensors"]["optimizer.safetensors"]["step/0.bias"] = "int64 ()"
    (path / "state.json").write_text(json.dumps(state))
    return "tensor 'step/0.bias' is float32 () where its state.json has int64 ()"


def give_it_to_another_run(path):
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "run_hash": "other"}))
    return "of another run"


def pickle_it(path):
    """Replaces a safetensors file by a pickle with the right checksum. Unpickling it would leave a trace."""
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
    forget_the_tensors,
    record_another_dtype,
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
    # It is renamed, not deleted, and later checkpoints are kept as usual.
    assert (tmp_path / "step-00000002.unusable").is_dir()
    save(tmp_path, 2, other, other_optimizer)
    assert [p.name for p in find_checkpoints(tmp_path)] == ["step-00000001", "step-00000002"]


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


def forget_a_step(optimizer, parameter):
    del optimizer.state[parameter]["step"]


def shorten_a_moment(optimizer, parameter):
    optimizer.state[parameter]["exp_avg"] = torch.ones(2)


@pytest.mark.parametrize(
    ("change", "width", "sentence"),
    [
        (None, 5, r"tensor '0.bias' is float32 \(3,\) where this run's model has float32 \(5,\)"),
        (forget_a_step, 3, r"tensor 'step/0.bias' is \(not there\) where this run's optimizer has \(\)"),
        (shorten_a_moment, 3, r"tensor 'exp_avg/0.bias' is \(2,\) where this run's optimizer has \(3,\)"),
    ],
)
def test_a_checkpoint_of_another_model_or_of_half_a_state_is_refused_unchanged(tmp_path, change, width, sentence):
    model, optimizer = make()
    train(model, optimizer, 1)
    if change:
        change(optimizer, model[0].bias)
    path = save(tmp_path, 1, model, optimizer)
    other, other_optimizer = make(width=width)
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(CheckpointError, match=sentence):
        checkpoint.load(path, other, other_optimizer, run_hash="run")
    assert all(torch.equal(p, b) for p, b in zip(other.parameters(), before, strict=True))


def thaw(model, optimizer):
    model.table.weight.requires_grad_(True)


def halve(model, optimizer):
    model.norm.half()


def forget_a_parameter(model, optimizer):
    optimizer.param_groups[0]["params"].pop(0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (thaw, r"step-00000002: 'table.weight' is frozen either there or in this run's model, not in both"),
        (halve, r"tensor 'norm.bias' is float32 \(4,\) where this run's model has float16 \(4,\)"),
        (forget_a_parameter, r"tensor 'exp_avg/first.weight' is \(4, 4\) where this run's optimizer has \(not there\)"),
    ],
)
def test_a_checkpoint_of_other_parameters_is_refused_unchanged(tmp_path, change, sentence):
    model, optimizer = make_heads(freeze=("table.weight",))
    train_heads(model, optimizer, range(2))
    path = save(tmp_path, 2, model, optimizer)
    train_heads(model, optimizer, range(2, 3))
    change(model, optimizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = {p: dict(state) for p, state in optimizer.state.items()}
    generator = torch.get_rng_state()
    with pytest.raises(CheckpointError, match=sentence):
        checkpoint.load(path, model, optimizer, run_hash="run")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert states == optimizer.state and torch.equal(torch.get_rng_state(), generator)


def add_a_number(model, optimizer):
    optimizer.state[model.table.weight]["count"] = 3


def add_a_stranger(model, optimizer):
    optimizer.state[nn.Parameter(torch.ones(1))]["exp_avg"] = torch.ones(1)


def save_parameters_only(model, optimizer):
    def save(folder):
        folder.mkdir()
        write_tensors(folder / "model.safetensors", dict(model.named_parameters()))

    model.save = save


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (add_a_number, "optimizer: count/table.weight is a int; only tensors can be saved"),
        (add_a_stranger, "optimizer: it has state of parameters that are not the model's"),
        (save_parameters_only, r"tensor 'norm.num_batches_tracked' is \(not there\) where the model has int64 \(\)"),
    ],
)
def test_what_could_not_be_read_back_is_not_saved(tmp_path, change, sentence):
    model, optimizer = make_heads()
    train_heads(model, optimizer, range(2))
    change(model, optimizer)
    with pytest.raises(CheckpointError, match=sentence):
        save(tmp_path, 2, model, optimizer)
    assert not list(tmp_path.iterdir())


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
