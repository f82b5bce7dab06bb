"""Files and folders that are written atomically. Imports no torch, and safetensors only to write tensors.

New content is written to ".NAME.PID.partial" in the same folder (a folder: ".NAME.partial"), synced to the disk, and
renamed to NAME. So at any time, also after kill -9 or a power cut, NAME has either its whole old content or its whole
new content.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

_UNFINISHED = re.compile(r"\..+\.partial")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write a file to, which then replaces `path`. An error leaves `path` unchanged.

    Raises OSError (a full disk, no permission) that names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with _errors_that_name(path, temporary):
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields an empty temporary folder to fill, which then replaces the folder `path`.

    Only one process at a time may write a folder of the same name. Raises OSError that names `path`, which is then
    unchanged.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with _errors_that_name(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove(temporary)  # left by a process that was killed
            temporary.mkdir()
            yield temporary
            sync_tree(temporary)
            _remove(path)  # a folder cannot replace one that is not empty
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        _remove(temporary)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically. Raises OSError."""
    with new_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically. Raises OSError."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file atomically; tensors may be on any device. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with new_file(path) as temporary:
        try:
            save_file(on_host, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # safetensors wraps the system's errors in this class
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]), os.strerror(int(number[1]))) if number else error from error


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and persistent buffers by name, for a model's file; a shared tensor is there only once."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), (name, tensor))
    return dict(first.values())


def is_unfinished(name: str) -> bool:
    """Returns whether a name is that of an unfinished file or folder."""
    return _UNFINISHED.fullmatch(name) is not None


def remove_unfinished(folder: Path) -> None:
    """Removes the unfinished files and folders of killed processes. No process may be writing there now."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if is_unfinished(path.name):
            _remove(path)


def sync(path: Path) -> None:
    """Waits until the bytes of a file, or the list of names of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Waits until a folder and everything in it are on the disk."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in sorted(names):
            sync(Path(root) / name)
        sync(Path(root))


def disk_is_full(error: OSError) -> bool:
    """Returns whether the error is: no space left, a quota reached, or a file at the size limit."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def explain_full_disk(path: Path, sentence: str) -> Iterator[None]:
    """Turns the OSError of a full disk into one with a clear message: the path, then `sentence`."""
    try:
        yield
    except OSError as error:
        if not disk_is_full(error):
            raise
        raise OSError(f"no space left on the disk of {path}: {sentence}") from error


@contextmanager
def _errors_that_name(path: Path, temporary: Path) -> Iterator[None]:
    """Makes an OSError that names `temporary`, or no file as after a failed write, name `path`."""
    try:
        yield
    except OSError as error:
        name = str(error.filename or temporary)
        if error.errno is None or not name.startswith(str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path) + name.removeprefix(str(temporary))) from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
