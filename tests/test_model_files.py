"""A model's folder: errors for damaged and foreign files, and old content that survives a failed write."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastlm import models
from fastlm.models import BERT, GPT1, files

TINY = models.PRESETS["gpt1_tiny"]


@pytest.fixture
def folder(tmp_path):
    models.build(TINY).save(tmp_path)
    return tmp_path


def edit_config(folder, **changes):
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def assert_refused(folder, sentence, error=ValueError):
    with pytest.raises(error, match=sentence) as caught:
        models.load(folder)
    assert "\n" not in str(caught.value)


def test_tied_weights_are_stored_once(folder):
    stored = sum(t.numel() for t in load_file(folder / "model.safetensors").values())
    assert stored == models.parameter_count(TINY)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "gpt1"


def test_half_precision_stays(tmp_path):
    models.build(TINY).bfloat16().save(tmp_path)
    assert {p.dtype for p in models.load(tmp_path).parameters()} == {torch.bfloat16}


def test_missing_files_are_named(folder):
    (folder / "model.safetensors").unlink()
    assert_refused(folder, r"model\.safetensors: no such file$", FileNotFoundError)
    (folder / "pytorch_model.bin").touch()
    assert_refused(folder, r"no such file; pytorch_model\.bin beside it may be pickles", FileNotFoundError)
    (folder / "config.json").unlink()
    assert_refused(folder, r"config\.json: no such file; a model's folder holds", FileNotFoundError)
    assert_refused(folder / "nowhere", r"nowhere/config\.json: no such file", FileNotFoundError)


def test_a_file_that_may_not_be_read_is_not_called_missing(folder, monkeypatch):
    opened = Path.open

    def refuse(path, *arguments, **options):
        if path.name == files.WEIGHTS:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)  # root may read every file
    assert_refused(folder, r"Permission denied: '.*model\.safetensors'", PermissionError)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_is_never_loaded(folder, zipped):
    path = folder / "model.safetensors"

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(folder / "sprung"),)

    torch.save({"embedding.word": Trap()}, path, _use_new_zipfile_serialization=zipped)
    assert_refused(folder, r"model\.safetensors: a pickle, which is never loaded")
    assert not (folder / "sprung").exists()


def test_a_file_that_only_begins_like_a_pickle_is_loaded(tmp_path):
    """A safetensors file begins with the low byte of its header's length, which is 0x80 in one of 32 files."""
    path = tmp_path / "model.safetensors"
    for length in range(300):
        save_file({"x" * (length + 1): torch.ones(1)}, path)
        if path.read_bytes()[0] == 0x80:
            break
    else:
        pytest.fail("no header of such a length was found")
    assert list(files.read_weights(tmp_path)) == ["x" * (length + 1)]


@pytest.mark.parametrize("size", [0, 4, 100, 5000, -1])
def test_a_truncated_file_is_refused(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert_refused(folder, r"model\.safetensors: not a safetensors file, or a truncated one \(")


def test_another_file_is_refused(folder):
    (folder / "model.safetensors").write_text("<html>404: Not Found</html>" * 10)
    assert_refused(folder, r"model\.safetensors: not a safetensors file")


def test_a_configuration_that_is_not_ours_is_refused(folder):
    edit_config(folder, hidden_size=64, heads=None)
    assert_refused(
        folder, r"not the configuration of a fastlm gpt1: missing: heads; unknown: hidden_size .*transformers"
    )
    edit_config(folder, hidden_size=None, heads=5)
    assert json.loads((folder / "config.json").read_text())["heads"] == 5
    edit_config(folder, model_type="llama")
    assert_refused(folder, r"model_type must be 'gpt1' or 'bert', got 'llama'")
    (folder / "config.json").write_text("[1]")
    assert_refused(folder, r"config\.json: a JSON object expected, got a list")
    (folder / "config.json").write_text("{")
    assert_refused(folder, r"config\.json: not JSON")


def test_values_that_make_no_model_are_refused(folder):
    edit_config(folder, heads=5)
    assert_refused(folder, r"config\.json: hidden must be a multiple of heads")
    edit_config(folder, heads="two")
    assert_refused(folder, r"config\.json: heads must be an integer of at least 1 and below 2\^31, got 'two'")


def test_the_other_model_is_refused(folder):
    with pytest.raises(ValueError, match=r"a bert model expected, its config.json has 'gpt1'"):
        BERT.load(folder)
    assert isinstance(GPT1.load(folder), GPT1)


def test_tensors_that_do_not_fit_are_listed(folder):
    edit_config(folder, layers=1)
    assert_refused(folder, r"not the tensors of this model: unknown: blocks\.1\.attention\.out\.bias, ")
    edit_config(folder, layers=2, vocab_size=500)
    assert_refused(folder, r"of another shape: embedding\.word \(512, 64\), not \(500, 64\)")
    edit_config(folder, vocab_size=512)
    edit_weights(folder, lambda weights: weights.pop("embedding.position"))
    assert_refused(folder, r"missing: embedding\.position$")


FULL_DISK = """
import resource, sys
from fastlm import models
model = models.build(models.PRESETS["gpt1_tiny"])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    model.save(sys.argv[1])
except OSError as error:
    print(f"OSError: {error}")
"""


def test_a_full_disk_is_an_os_error_and_leaves_what_was_there(folder):
    """A limit on the size of files acts as a full disk: a write fails half-way."""
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    run = subprocess.run([sys.executable, "-c", FULL_DISK, str(folder)], capture_output=True, text=True, timeout=60)
    assert run.stdout == f"OSError: [Errno 27] File too large: '{folder / files.WEIGHTS}'\n", run.stderr
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize("synced", [0, 1, 2, 3])
def test_a_write_that_stops_half_way_leaves_whole_files(folder, synced, monkeypatch):
    """Interrupts before the weights, their name, the configuration or its name are on the disk."""
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    calls = []

    def interrupted(descriptor):
        calls.append(descriptor)
        if len(calls) > synced:
            raise KeyboardInterrupt

    other = models.build(replace(TINY, layers=1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            other.save(folder)
    other.save(folder.parent / "other")
    after = {p.name: p.read_bytes() for p in (folder.parent / "other").iterdir()}
    written = {files.WEIGHTS: synced >= 1, files.CONFIG: synced >= 3}
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        name: (after if written[name] else before)[name] for name in before
    }


class Shared(GPT1):
    """GPT-1 with one shared block, a shared parameter, and a buffer."""

    def __init__(self, config, heads=None, **options):
        super().__init__(config, heads, **options)
        self.blocks[1] = self.blocks[0]
        self.lm_bias = torch.nn.Parameter(torch.zeros(config.hidden))
        self.other_bias = self.lm_bias
        self.register_buffer("table", torch.arange(3))


def test_what_is_shared_is_stored_once_and_stays_shared_and_buffers_are_kept(tmp_path):
    model = Shared(TINY)
    model.table += 5
    model.save(tmp_path)
    stored = load_file(tmp_path / files.WEIGHTS)
    assert stored["table"].tolist() == [5, 6, 7] and "lm_bias" in stored and "other_bias" not in stored
    assert not any(name.startswith("blocks.1.") for name in stored)
    loaded = Shared.load(tmp_path)
    assert loaded.blocks[0] is loaded.blocks[1] and loaded.lm_bias is loaded.other_bias
    assert len(list(loaded.parameters())) == len(list(model.parameters()))
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_who_reads_the_old_file_goes_on_reading_it(folder):
    old = {path: path.read_bytes() for path in folder.iterdir()}
    with contextlib.ExitStack() as stack:
        readers = {path: stack.enter_context(path.open("rb")) for path in old}
        models.build(replace(TINY, layers=1)).save(folder)
        for path, content in old.items():
            assert readers[path].read() == content != path.read_bytes()
