"""Writing that is all or nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def explain_full_disk(path: Path, sentence: str) -> Iterator[None]:
    """Turn "no space left" (and "quota exceeded") into one sentence that says what was being written where."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(f"no space left on the disk of {path}: {sentence}") from error


def sync_folder(path: Path) -> None:
    """Flush a folder's entries, so that what was renamed into it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that `path` is at every moment either what it was or the whole new content."""
    temporary = path.with_name(f".{path.name}.partial")
    with explain_full_disk(path, "nothing was changed there"):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
