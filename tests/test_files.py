"""Files and folders that are written atomically, whatever stops the writing."""

import errno
import os
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from fastlm import files

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
STOPS = [FULL, KeyboardInterrupt(), ValueError("wrong")]


def write_file(path, content, stop=None):
    with files.new_file(path) as temporary:
        temporary.write_text(content)
        if stop:
            raise stop


def write_folder(path, content, stop=None):
    with files.new_folder(path) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "text").write_text(content)
        if stop:
            raise stop


def read(path):
    return (path / "inner" / "text" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_new_content_replaces_the_old(tmp_path, write):
    for content in ("old", "new"):
        write(tmp_path / "it", content)
        assert read(tmp_path / "it") == content and os.listdir(tmp_path) == ["it"]


@pytest.mark.parametrize("write", [write_file, write_folder])
@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: type(stop).__name__)
def test_a_write_that_stops_half_way_leaves_the_old(tmp_path, write, stop):
    with pytest.raises(type(stop)):
        write(tmp_path / "it", "new", stop)
    assert os.listdir(tmp_path) == []
    write(tmp_path / "it", "old")
    with pytest.raises(type(stop)):
        write(tmp_path / "it", "new", stop)
    assert read(tmp_path / "it") == "old" and os.listdir(tmp_path) == ["it"]


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_all_of_it_is_on_the_disk_before_its_name_is(tmp_path, write, monkeypatch):
    """Records the calls in order: synced files and folders (with a slash), and renamings."""
    calls, fsync, replace = [], os.fsync, os.replace

    def noted(descriptor):
        name = os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path)
        calls.append(name + "/" * stat.S_ISDIR(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("rename"), replace(*paths)))
    write(tmp_path / "it", "new")
    before = {
        write_file: [f".it.{os.getpid()}.partial"],
        write_folder: [".it.partial/inner/text", ".it.partial/inner/", ".it.partial/"],
    }
    assert calls == [*before[write], "rename", "./"]


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_an_error_names_the_file_that_was_to_be_written(tmp_path, write):
    with pytest.raises(OSError, match=rf"^\[Errno 28\] No space left on device: '{tmp_path / 'it'}'$"):
        write(tmp_path / "it", "new", FULL)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=rf"'{tmp_path / 'file'}"):
        write(tmp_path / "file" / "it", "new")


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"'{tmp_path / 'source'}'$"), files.new_folder(tmp_path / "it"):
        (tmp_path / "source").read_text()


def test_an_error_within_a_new_folder_names_the_place_of_the_file(tmp_path):
    with (
        pytest.raises(OSError, match=rf"No such file or directory: '{tmp_path}/it/missing/text'$"),
        files.new_folder(tmp_path / "it") as temporary,
    ):
        (temporary / "missing" / "text").write_text("new")


def test_what_killed_processes_left_is_removed(tmp_path):
    write_file(tmp_path / "file", "kept")
    write_folder(tmp_path / "folder", "kept")
    (tmp_path / ".hidden").write_text("kept")
    (tmp_path / ".file.123.partial").write_text("half")
    (tmp_path / ".folder.partial").mkdir()
    (tmp_path / ".folder.partial" / "text").write_text("half")
    files.remove_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "file", "folder"]
    files.remove_unfinished(tmp_path / "nowhere")
    (tmp_path / ".folder.partial").mkdir()
    (tmp_path / ".folder.partial" / "text").write_text("half")
    write_folder(tmp_path / "folder", "new")
    assert read(tmp_path / "folder") == "new" and not (tmp_path / "folder" / "text").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_explained(number):
    with (
        pytest.raises(OSError, match=r"^no space left on the disk of here: nothing was changed$"),
        files.explain_full_disk("here", "nothing was changed"),
    ):
        raise OSError(number, os.strerror(number))
    assert files.disk_is_full(OSError(number, ""))


def test_another_error_is_not_taken_for_a_full_disk():
    with pytest.raises(OSError, match="Input/output error"), files.explain_full_disk("here", "nothing was changed"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_tensors_that_share_memory_or_are_strided_are_written(tmp_path):
    x = torch.arange(12.0).view(3, 4)
    files.write_tensors(tmp_path / "x", {"whole": x, "turned": x.t(), "row": x[1].expand(2, 4)})
    stored = load_file(tmp_path / "x")
    assert torch.equal(stored["whole"], x) and torch.equal(stored["turned"], x.t())
    assert torch.equal(stored["row"], x[1].expand(2, 4))


def test_safetensors_own_error_is_the_systems(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(IsADirectoryError, match=rf"'{tmp_path / 'x'}'$"):
        files.write_tensors(tmp_path / "x", {"x": torch.ones(1)})
    with pytest.raises(FileNotFoundError, match=rf"'{tmp_path / 'nowhere' / 'x'}'$"):
        files.write_tensors(tmp_path / "nowhere" / "x", {"x": torch.ones(1)})


def test_what_is_shared_is_named_once_and_what_is_not_persistent_never():
    inner = torch.nn.BatchNorm1d(2)
    outer = torch.nn.Sequential(inner, torch.nn.Linear(2, 2), inner)
    outer[1].bias = inner.bias
    outer.register_buffer("passing", torch.ones(1), persistent=False)
    named = files.named_tensors(outer)
    assert list(named) == [
        "0.weight", "0.bias", "0.running_mean", "0.running_var", "0.num_batches_tracked", "1.weight",
    ]  # fmt: skip
    assert named["0.bias"] is inner.bias


def test_it_imports_no_torch():
    """Loads the file alone, without the package."""
    code = "import importlib.util, sys; spec = importlib.util.spec_from_file_location('files', sys.argv[1]); "
    code += "spec.loader.exec_module(importlib.util.module_from_spec(spec)); "
    code += "print(sorted({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    command = [sys.executable, "-c", code, files.__file__]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
