"""An interrupted and resumed run equals an uninterrupted one bit for bit."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
from runs import STEPS, before_update, configuration, losses, one_thread, run, text, weights

from fastlm.data import DataError, SentencePairs, Windows
from fastlm.run_folder import RunError, find_checkpoints
from fastlm.train import checkpoint
from fastlm.train.loop import Interrupted
from fastlm.train.run import NUMERICS, TrainingFolder

__all__ = ["one_thread", "text"]  # fixtures
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text):
    """Returns the folder of an uninterrupted run of a model, made at its first use."""
    made = {}

    def folder(model):
        if model not in made:
            made[model] = tmp_path_factory.mktemp("whole") / model
            run(configuration(text, model), made[model])
        return made[model]

    return folder


def assert_same_run(folder, expected):
    assert losses(folder) == losses(expected)
    assert weights(folder) == weights(expected)
    ours, theirs = (json.loads((f / "report.json").read_text()) for f in (folder, expected))
    assert {**ours, "training_seconds": 0} == {**theirs, "training_seconds": 0}


class Stopped(Exception):
    pass


def stop():
    raise Stopped


KILLED = """
    import json, os, signal, sys
    from dataclasses import replace
    from pathlib import Path
    import torch, runs
    from fastlm import files

    torch.set_num_threads(1)
    text, model, folder, where, step, options = sys.argv[1:]
    die = lambda *ignored: os.kill(os.getpid(), signal.SIGKILL)
    if where == "update":
        update = runs.trainer.Trainer.update
        runs.trainer.Trainer.update = lambda self, n: die() if n == int(step) else update(self, n)
    else:  # within the writing of a checkpoint, before or after it gets its name
        original = getattr(files, where)
        setattr(files, where, lambda path: die() if f"{step}" in str(path) else original(path))
    runs.run(runs.configuration(Path(text), model, **json.loads(options)), Path(folder))
"""


def run_and_kill(text, model, folder, where, step, **options):
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    command = [sys.executable, "-c", textwrap.dedent(KILLED), text, model, folder, where, step, json.dumps(options)]
    child = subprocess.run(
        list(map(str, command)), env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert child.returncode == -signal.SIGKILL, child.stderr


def test_killed_before_a_checkpoint_within_one_and_between_them(tmp_path, text, whole):
    folder, model = tmp_path / "run", "gpt1_tiny"
    run_and_kill(text, model, folder, "update", 3)
    assert len(losses(folder)) == 3 and not find_checkpoints(folder / "checkpoints")
    run_and_kill(text, model, folder, "sync_tree", ".step-00000008")
    assert [path.name for path in find_checkpoints(folder / "checkpoints")] == ["step-00000004"]
    run_and_kill(text, model, folder, "update", 10)
    assert len(losses(folder)) == 10
    notes = []
    run(configuration(text, model), folder, notes)
    assert f"resuming at step 8 of {STEPS}" in notes
    assert_same_run(folder, whole(model))


def test_bert_killed(tmp_path, text, whole):
    run_and_kill(text, "bert_tiny", tmp_path / "run", "update", 7)  # in the second phase
    run(configuration(text, "bert_tiny"), tmp_path / "run")
    assert_same_run(tmp_path / "run", whole("bert_tiny"))


@pytest.mark.parametrize(("model", "number"), [("gpt1_tiny", signal.SIGINT), ("bert_tiny", signal.SIGTERM)])
def test_a_signal_saves_the_step_it_comes_in(tmp_path, text, whole, monkeypatch, model, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        before_update(patch, 6, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted, match=f"stopped and saved at step 7 of {STEPS}"):
            run(configuration(text, model), tmp_path)
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    notes = []
    run(configuration(text, model), tmp_path, notes)
    assert f"resuming at step 7 of {STEPS}" in notes
    assert_same_run(tmp_path, whole(model))


def test_a_second_interrupt_does_not_wait(tmp_path, text, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before_update(monkeypatch, 6, twice)
    with pytest.raises(KeyboardInterrupt):
        run(configuration(text), tmp_path)
    assert [path.name for path in find_checkpoints(tmp_path / "checkpoints")] == ["step-00000004"]


def test_interrupted_after_the_last_update(tmp_path, text, whole, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("fastlm.train.loop._finish", lambda *arguments: stop())
        with pytest.raises(Stopped):
            run(configuration(text), tmp_path)
    before_update(monkeypatch, 0, stop)  # no update is left
    run(configuration(text), tmp_path)
    assert_same_run(tmp_path, whole("gpt1_tiny"))


@pytest.mark.parametrize(("model", "dataset"), [("gpt1_tiny", Windows), ("bert_tiny", SentencePairs)])
def test_a_resumed_run_reads_no_batch_before_its_position(tmp_path, text, monkeypatch, model, dataset):
    with monkeypatch.context() as patch:
        before_update(patch, 9, stop)
        with pytest.raises(Stopped):
            run(configuration(text, model), tmp_path)
    asked, batch = [], dataset.batch

    def recorded(self, step):
        asked.append((self._split_name, step))
        return batch(self, step)

    def named(self, shards, split, *arguments):
        self._split_name = split
        return init(self, shards, split, *arguments)

    init = dataset.__init__
    monkeypatch.setattr(dataset, "__init__", named)
    monkeypatch.setattr(dataset, "batch", recorded)
    run(configuration(text, model), tmp_path)
    # Two micro-batches per update; the checkpoint is of step 8.
    assert [step for split, step in asked if split == "train"] == list(range(16, 2 * STEPS))


def test_checkpoints_by_the_clock(tmp_path, text, whole, monkeypatch):
    before_update(monkeypatch, 3, stop)
    with pytest.raises(Stopped):
        run(configuration(text, checkpoint_every=1000, checkpoint_seconds=1e-9), tmp_path)
    assert [path.name for path in find_checkpoints(tmp_path / "checkpoints")] == ["step-00000002", "step-00000003"]
    monkeypatch.undo()
    run(configuration(text), tmp_path)  # a resumed run may change options that change no loss
    assert_same_run(tmp_path, whole("gpt1_tiny"))


# Changed data -----------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted_on_a_copy(tmp_path, text, monkeypatch):
    """Returns a copy of the text, and a run on it that has made six updates."""
    data_file, folder = tmp_path / text.name, tmp_path / "run"
    data_file.write_bytes(text.read_bytes())
    with monkeypatch.context() as patch:
        before_update(patch, 6, stop)
        with pytest.raises(Stopped):
            run(configuration(data_file), folder)
    return data_file, folder


def change(data_file):
    data_file.write_text('{"text": "Another text. It is short."}\n')


@pytest.mark.parametrize(("act", "said"), [(change, "has changed"), (os.unlink, "is gone")])
def test_a_run_goes_on_with_its_shards_when_its_data_changed(interrupted_on_a_copy, whole, act, said):
    data_file, folder = interrupted_on_a_copy
    act(data_file)
    notes = []
    run(configuration(data_file), folder, notes)
    assert notes[0] == (
        f"data: {data_file} {said}; the run continues with its original text, kept in {folder / 'data'}"
    )
    assert_same_run(folder, whole("gpt1_tiny"))


def test_touched_data_is_not_said_to_have_changed(interrupted_on_a_copy, whole):
    data_file, folder = interrupted_on_a_copy
    os.utime(data_file, (0, 0))
    notes = []
    run(configuration(data_file), folder, notes)
    assert notes[0] == f"resuming at step 4 of {STEPS}"


@pytest.mark.parametrize("lost", ["data", "tokenizer.json"])
def test_lost_shards_are_made_again_from_the_same_data_only(interrupted_on_a_copy, whole, lost):
    data_file, folder = interrupted_on_a_copy
    content = data_file.read_bytes()
    (folder / lost).rename(folder.parent / "lost")
    change(data_file)
    with pytest.raises(RunError, match=r"has lost its tokenizer or its shards, .*has changed; put the old data back"):
        run(configuration(data_file), folder)
    data_file.write_bytes(content)
    run(configuration(data_file), folder)
    assert_same_run(folder, whole("gpt1_tiny"))


# Another version -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, 99])
def test_a_run_of_other_numerics_is_refused(interrupted, text, version):
    file = interrupted / "config.json"
    recorded = json.loads(file.read_text())
    assert recorded.pop("numerics") == NUMERICS
    file.write_text(json.dumps(recorded | ({"numerics": version} if version else {})))
    sentence = rf"numerics version {version or 0}, and this fastlm computes with version {NUMERICS}, .*finish it with"
    with pytest.raises(RunError, match=sentence):
        run(configuration(text), interrupted)


# Damage ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(tmp_path, text, monkeypatch):
    """Returns a run of GPT-1 with checkpoints of steps 4 and 8, and ten lines of metrics."""
    with monkeypatch.context() as patch:
        before_update(patch, 10, stop)
        with pytest.raises(Stopped):
            run(configuration(text), tmp_path / "run")
    return tmp_path / "run"


def test_a_truncated_checkpoint_gives_way_to_the_one_before(interrupted, text, whole):
    file = interrupted / "checkpoints" / "step-00000008" / "optimizer.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    notes = []
    run(configuration(text), interrupted, notes)
    assert any("optimizer.safetensors" in note and "trying the checkpoint before it" in note for note in notes)
    assert f"resuming at step 4 of {STEPS}" in notes
    assert_same_run(interrupted, whole("gpt1_tiny"))


def test_without_a_usable_checkpoint_nothing_is_begun_anew(interrupted, text):
    lines = losses(interrupted)
    for path in find_checkpoints(interrupted / "checkpoints"):
        (path / "state.json").write_text("{}")
    with pytest.raises(checkpoint.CheckpointError, match="none of its 2 checkpoints can be used"):
        run(configuration(text), interrupted)
    assert losses(interrupted) == lines and len(find_checkpoints(interrupted / "checkpoints")) == 2


def test_a_checkpoint_of_another_run_is_refused(interrupted, text, tmp_path):
    other = tmp_path / "other"
    run(configuration(text, seed=1), other)
    newest = other / "checkpoints" / "step-00000012"
    newest.rename(interrupted / "checkpoints" / newest.name)
    notes = []
    run(configuration(text), interrupted, notes)
    assert any("of another run" in note for note in notes) and f"resuming at step 8 of {STEPS}" in notes


def test_a_tokenizer_that_does_not_match_the_shards_is_refused(interrupted, text, tmp_path):
    other = tmp_path / "other"
    run(configuration(text, vocab_size=400), other)
    (interrupted / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes())
    with pytest.raises(DataError, match="tokenizer: .* was made with the bpe tokenizer"):
        run(configuration(text), interrupted)


def test_a_tokenizer_and_shards_of_another_run_are_refused(interrupted, text, tmp_path):
    other = tmp_path / "other"
    run(configuration(text, vocab_size=400), other)
    (interrupted / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes())
    shutil.rmtree(interrupted / "data")
    shutil.copytree(other / "data", interrupted / "data")
    with pytest.raises(RunError, match=r"holds other data than the run began with"):
        run(configuration(text), interrupted)


def test_metrics_that_are_gone_do_not_make_a_run_a_new_one(interrupted, text):
    (interrupted / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match="another configuration: seed"):
        run(configuration(text, seed=1), interrupted)


def test_a_run_without_its_checkpoints_says_that_it_starts_again(interrupted, text, whole):
    shutil.rmtree(interrupted / "checkpoints")
    notes = []
    run(configuration(text), interrupted, notes)
    assert f"{interrupted} has no checkpoint: the run starts again at step 0" in notes
    assert_same_run(interrupted, whole("gpt1_tiny"))


@pytest.mark.parametrize("kept", [slice(0), slice(5), slice(5, None)], ids=["none", "the first", "the last"])
def test_a_run_without_some_of_its_metrics_continues(interrupted, text, whole, kept):
    lines = (interrupted / "metrics.jsonl").read_text().splitlines(keepends=True)
    (interrupted / "metrics.jsonl").write_text("".join(lines[kept]))
    lost, notes = 8 - len(lines[:8][kept]), []
    run(configuration(text), interrupted, notes)
    (note,) = (note for note in notes if "metrics.jsonl" in note)
    assert f"metrics.jsonl: {lost} of the records of the first 8 updates are lost" in note and "continues" in note
    expected = losses(whole("gpt1_tiny"))
    assert losses(interrupted) == expected[:8][kept] + expected[8:]
    assert weights(interrupted) == weights(whole("gpt1_tiny"))


# A full disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk():
    """Limits the size of files, which fails in the same way as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# The disk is full in the metrics of update 6, in the optimizer's file of step 8, and in the model's of step 4.
@pytest.mark.parametrize(("update", "size", "saved"), [(5, 1000, 4), (6, 600_000, 4), (3, 550_000, None)])
def test_a_full_disk_keeps_what_is_there(tmp_path, text, whole, monkeypatch, full_disk, update, size, saved):
    kept = f"the run is saved up to step-0000000{saved}" if saved else "nothing was saved yet"
    with monkeypatch.context() as patch:
        before_update(patch, update, lambda: full_disk(size))
        with pytest.raises(RunError, match=f"the disk of .* is full; {kept}: free some space and give the same"):
            run(configuration(text), tmp_path)
    full_disk(resource.RLIM_INFINITY)
    run(configuration(text), tmp_path)
    assert_same_run(tmp_path, whole("gpt1_tiny"))


def test_another_error_of_the_disk_is_not_taken_for_a_full_one(tmp_path, text, monkeypatch):
    def broken():
        raise OSError(errno.EIO, "Input/output error")

    before_update(monkeypatch, 2, broken)
    with pytest.raises(OSError, match="Input/output error"):
        run(configuration(text), tmp_path)
    recipe = configuration(text)
    TrainingFolder(tmp_path).open(recipe.task(), recipe.to_json())  # the lock is free
