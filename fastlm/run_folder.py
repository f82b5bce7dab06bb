"""The folder of a run: its files and its record.

config.json                 the options, the identity of the data files, and the plan: steps, precision, sizes
tokenizer.json, data/       the tokenizer and the tokenised shards (of tasks on text)
metrics.jsonl               one line per update
checkpoints/step-N/         the last two, and the best one if it is kept (train/checkpoint.py), each with the model in
                            model/, and the size and CRC-32 of its files in state.json
loss.png, scores.png        the curves of the loss and of the validations' scores, written at each checkpoint
model/, report.{json,md}    written at the end, and confusion.png of tasks with labels
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastlm.files import checksum

FORMATS = (1, 2)  # of config.json; 2 is written
CHECKPOINT_FORMAT = 3
_CHECKPOINT = re.compile(r"step-(\d+)")


class RunError(ValueError):
    """Reports a run that cannot be started, resumed or read; the message says why and what would help."""


class CheckpointError(ValueError):
    """Reports a checkpoint that is truncated, damaged, foreign or missing, or that could never be loaded again."""


class RunFolder:
    """Names the files of a run folder. The constructor reads and writes nothing."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.tokenizer_file = self.path / "tokenizer.json"
        self.data = self.path / "data"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.curve = self.path / "loss.png"
        self.scores = self.path / "scores.png"
        self.confusion = self.path / "confusion.png"
        self.report = self.path / "report.json"
        self.report_text = self.path / "report.md"

    def check_path(self) -> None:
        """Raises RunError if the path cannot be a folder, because it, or a folder that it is in, is a file."""
        for path in (self.path, *self.path.parents):
            if path.exists():
                if not path.is_dir():
                    raise RunError(f"run: {path} is a file; a folder is needed")
                return

    def exists(self) -> bool:
        """Returns whether the folder holds a run, with or without an update."""
        return self.config_file.is_file()

    def begun(self) -> bool:
        """Returns whether the folder holds a run that has made an update."""
        updated = self.metrics_file.is_file() and self.metrics_file.stat().st_size > 0
        return self.exists() and (updated or self.report.is_file() or bool(find_checkpoints(self.checkpoints)))

    def has_model(self) -> bool:
        """Returns whether model/ holds the two files of a model."""
        return all((self.model / name).is_file() for name in ("config.json", "model.safetensors"))

    def recorded(self) -> dict[str, Any]:
        """Returns the content of config.json. Raises RunError if fastlm did not write it."""
        if not self.exists():
            raise RunError(f"run: {self.path} is not a run folder (it has no config.json)")
        try:
            content = json.loads(self.config_file.read_text())
        except ValueError as error:
            raise RunError(f"run: {self.config_file} is not JSON ({error})") from error
        if not isinstance(content, dict) or content.get("format") not in FORMATS:
            known = " or ".join(map(str, FORMATS))
            raise RunError(f"run: {self.config_file} is not the configuration of a fastlm run of format {known}")
        missing = {"plan", "made_from"} - content.keys()
        if content["format"] == FORMATS[-1] and missing:
            raise RunError(f"run: {self.config_file} is damaged: it has no {min(missing)!r}")
        return content

    def tokenizer_hash(self) -> str | None:
        """Returns the hash of the tokenizer that the run's plan names; None if it names none, or there is no plan."""
        plan = self.recorded().get("plan")
        task = plan.get("task") if isinstance(plan, dict) else None
        return task.get("tokenizer_hash") if isinstance(task, dict) else None

    def newest_model(self, notify: Callable[[str], None] = warnings.warn) -> Path:
        """Returns the folder of the trained model, or, of an unfinished run, of its newest intact checkpoint's model.

        A checkpoint whose model is damaged is reported to `notify`, and the one before it is tried. Raises RunError if
        there is no model.
        """
        self.recorded()
        if self.model.is_dir():
            return self.model
        saved = find_checkpoints(self.checkpoints)
        if not saved:
            raise RunError(f"run: {self.path} has neither model/ nor a checkpoint yet; train it first")
        damaged = []
        for path in reversed(saved):
            try:
                verify_checkpoint(path, within="model/")
            except CheckpointError as error:
                damaged.append(error)
                continue
            for error in damaged:
                notify(f"{error}; the older {path.name} is used")
            return path / "model"
        raise RunError(
            f"{damaged[0]}; no checkpoint of {self.path} has an intact model: train it again, in another --run"
        )


def find_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints of a folder, oldest first. Unfinished ones are left out."""
    entries = folder.iterdir() if folder.is_dir() else ()
    found = {int(match[1]): path for path in entries if (match := _CHECKPOINT.fullmatch(path.name))}
    return [found[step] for step in sorted(found)]


def verify_checkpoint(path: Path, within: str = "") -> dict[str, Any]:
    """Returns a checkpoint's state.json, after comparing files with the size and the CRC-32 that it gives.

    within: compares only the files whose names begin with it. Raises CheckpointError for a file that was changed, is
    missing or cannot be read.
    """
    try:
        state = json.loads((path / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of fastlm (state.json: {error})") from error
    if not isinstance(state, dict) or "format" not in state:
        raise CheckpointError(f"{path}: not a checkpoint of fastlm (state.json names no format)")
    if state["format"] != CHECKPOINT_FORMAT:
        known = f"this fastlm reads format {CHECKPOINT_FORMAT}"
        raise CheckpointError(f"{path}: checkpoint format {state['format']!r}; {known}")
    if missing := {"step", "identity", "frozen", "tensors", "files"} - state.keys():
        raise CheckpointError(f"{path}: not a checkpoint of fastlm (state.json has no {min(missing)!r})")
    try:
        for name, expected in state["files"].items():
            if name.startswith(within):
                _check_file(path / name, expected["bytes"], expected["crc32"])
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: state.json is damaged (its 'files': {error!r})") from error
    return state


def _check_file(file: Path, written: int, crc32: int) -> None:
    """Raises CheckpointError unless a file has the size and the CRC-32 with which it was written."""
    size = file.stat().st_size if file.is_file() else None
    if size != written:
        found = "missing" if size is None else f"{size} bytes"
        raise CheckpointError(f"{file}: {found} where {written} bytes were written")
    try:
        found = checksum(file)
    except OSError as error:
        raise CheckpointError(f"{file}: it cannot be read ({error.strerror})") from error
    if found["crc32"] != crc32:
        raise CheckpointError(f"{file}: damaged: its CRC-32 is not the one that was written")
