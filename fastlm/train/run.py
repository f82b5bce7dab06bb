"""The folder of a run: what lies where, who may write to it, and what it may go on with.

config.json                      the options, the identity of the data files, the numerics version, and the plan that is
                                 made once when the run starts: steps, warm-up, device, precision, sizes
tokenizer.json, data/            the tokenizer and the tokenised shards
metrics.jsonl                    one line per update (metrics.py)
checkpoints/step-N/              the last two (checkpoint.py)
model/, loss.png, report.{json,md}   at the end (loss.png at each checkpoint too)
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastlm import models
from fastlm.data import corpus, shards, tokenizer
from fastlm.files import is_unfinished, remove_unfinished, write_json
from fastlm.train.checkpoint import find
from fastlm.train.config import PretrainConfig, differences

FORMAT = 1
# Every change after which the same command gives other losses adds 1: in tokenizers, sampling, models, ops of the CPU,
# optimizers or schedules. An unfinished run of another version is refused. Folders without a version have version 0.
NUMERICS = 1

Notify = Callable[[str], None]


class RunError(ValueError):
    """Reports a run that cannot be started or resumed; the sentence says why and what would help."""


class RunFolder:
    """Names the files of a run's folder and lets one process at a time hold it, until it ends, be it by kill -9."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.tokenizer_file = self.path / "tokenizer.json"
        self.data = self.path / "data"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.curve = self.path / "loss.png"
        self.report = self.path / "report.json"
        self._lock: int | None = None
        self._made_from: dict[str, Any] | None = None

    def exists(self) -> bool:
        """Says whether there is a run, begun or not."""
        return self.config_file.is_file()

    def begun(self) -> bool:
        """Says whether there is a run that has made an update."""
        updated = self.metrics_file.is_file() and self.metrics_file.stat().st_size > 0
        return self.exists() and (updated or self.report.is_file() or bool(find(self.checkpoints)))

    def open(self, config: PretrainConfig, notify: Notify = print) -> None:
        """Takes the folder for a run of `config`, new or resumed.

        A run that has made no update gives way to any other; the tokenizer and the shards that it left are kept only if
        they were made from the same data by the same options. A run that has made one keeps its shards for good, and
        `notify` gets a sentence if the data files are not what they were.

        Raises RunError if another process holds the folder, if it holds a run of another configuration (the differing
        fields are named) or of another numerics version, or if it is not a run's folder; DataError for data files that
        are not there.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"run: {self.path} is a file; a folder is needed")
        names = os.listdir(self.path) if self.path.is_dir() else []
        if not self.exists() and any(name != ".lock" and not is_unfinished(name) for name in names):
            raise RunError(f"run: {self.path} is not empty and holds no run of fastlm; name another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        self._acquire()
        different = []
        if self.exists():
            remove_unfinished(self.path)
            different = differences(config, self.recorded_config())
        if not self.begun():
            self._start(config, different, notify)
        elif different:
            raise RunError(
                f"run: {self.path} holds a run with another configuration: {', '.join(different)}; "
                "give the same options to resume it, or another --run"
            )
        elif not self.report.is_file():
            self._check_numerics()
            self._check_data_files(config, notify)

    def _start(self, config: PretrainConfig, different: list[str], notify: Notify) -> None:
        """Records the configuration and the data files; removes what was made from others."""
        self._made_from = {"shards": shards.FORMAT, "files": [_identity(path) for path in _data_files(config)]}
        before = self.recorded() if self.exists() else {}
        same = not different and before.get("numerics") == NUMERICS
        if not (same and _contents(before.get("made_from")) == _contents(self._made_from)):
            if self.tokenizer_file.exists() or self.data.exists():
                notify(f"{self.path} has a tokenizer or shards of other data or options; they are made anew")
            self.tokenizer_file.unlink(missing_ok=True)
            if self.data.exists():
                shutil.rmtree(self.data)
        self.record(config=config.to_json(), plan=None)

    def _check_numerics(self) -> None:
        """Raises RunError if the run was begun with another numerics version."""
        recorded = self.recorded()
        began = recorded.get("versions", {}).get("fastlm")
        if (version := recorded.get("numerics", 0)) != NUMERICS:
            raise RunError(
                f"run: {self.path} was begun with numerics version {version}, and this fastlm computes with version "
                f"{NUMERICS}, which gives other losses; finish it with the fastlm that began it"
                f"{f' (version {began})' if began else ''}, or give another --run"
            )

    def _check_data_files(self, config: PretrainConfig, notify: Notify) -> None:
        """Says which data files have changed. Raises RunError if the shards would have to be made from such files."""
        complete = self.tokenizer_file.is_file() and self.data.is_dir()
        now = list(config.data) or [corpus.novels()]
        changes = [
            f"{path} {change}"
            for path, before in zip(now, self.recorded()["made_from"]["files"], strict=True)
            if (change := _change(Path(path), before, read=not complete))
        ]
        if changes and complete:
            notify(f"data: {', '.join(changes)}; the run goes on with the text that it began with, kept in {self.data}")
        elif changes:
            raise RunError(
                f"run: {self.path} has lost its tokenizer or its shards, and they cannot be made again: "
                f"{', '.join(changes)}; put the old data back, or give another --run"
            )

    def close(self) -> None:
        """Lets other processes have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def recorded(self) -> dict[str, Any]:
        """Returns config.json. Raises RunError if it is not one of fastlm's."""
        if not self.exists():
            raise RunError(f"run: {self.path} is not a run folder (it has no config.json)")
        try:
            content = json.loads(self.config_file.read_text())
        except ValueError as error:
            raise RunError(f"run: {self.config_file} is not JSON ({error})") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise RunError(f"run: {self.config_file} is not the configuration of a fastlm run of format {FORMAT}")
        missing = {"config", "plan", "made_from"} - content.keys()
        if content.get("numerics") == NUMERICS and missing:
            raise RunError(f"run: {self.config_file} is damaged: it has no {min(missing)!r}")
        return content

    def recorded_config(self) -> PretrainConfig:
        """Returns the run's configuration. Raises RunError, naming the numerics versions, where this fastlm cannot."""
        try:
            return PretrainConfig.from_json(self.recorded()["config"])
        except (TypeError, KeyError) as error:
            self._check_numerics()
            raise RunError(f"run: {self.config_file} was written by another version of fastlm ({error})") from error

    def record(self, **content: Any) -> None:
        """Writes config.json, whole or not at all, for the data files that `open` found."""
        write_json(self.config_file, {"format": FORMAT, "numerics": NUMERICS, "made_from": self._made_from, **content})

    def _acquire(self) -> None:
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise RunError(f"run: another process is training in {self.path}") from error


def _data_files(config: PretrainConfig) -> list[Path]:
    """Returns the files that the run's text comes from. Raises DataError if one is not there or not of a known kind."""
    return corpus.read_documents(list(config.data) or [corpus.novels()], document=config.document).paths


def _identity(path: Path) -> dict[str, Any]:
    """Returns a data file's size, time of change and SHA-256.

    The SHA-256 decides whether a file is the same: `cp -p`, `rsync -t` or an unpacked archive may bring other text of
    the same size and time, and a copy of the same text has another time. Reading a file takes far less time than
    tokenising it.
    """
    status = path.stat()
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": str(path), "bytes": status.st_size, "modified_ns": status.st_mtime_ns, "sha256": digest}


def _contents(made_from: dict[str, Any] | None) -> tuple[int, list[str]] | None:
    """Returns what decides if a tokenizer and shards are used again; the paths are compared with the configuration."""
    return made_from and (made_from["shards"], [file["sha256"] for file in made_from["files"]])


def _change(path: Path, before: dict[str, Any], *, read: bool) -> str | None:
    """Says how a data file differs from what it was; without `read`, the same size and time count as no difference."""
    if not path.is_file():
        return "is gone"
    status = path.stat()
    same = (status.st_size, status.st_mtime_ns) == (before["bytes"], before["modified_ns"])
    return None if (same and not read) or _identity(path)["sha256"] == before["sha256"] else "has changed"


def load_trained(run: str | Path, device: str = "auto") -> tuple[Any, Any]:
    """Returns the model of a run (while it trains, that of the last checkpoint) in eval mode, and its tokenizer."""
    folder = RunFolder(run)
    folder.recorded()
    weights = folder.model
    if not weights.is_dir():
        saved = find(folder.checkpoints)
        if not saved:
            raise RunError(f"run: {folder.path} has neither model/ nor a checkpoint yet; train it first")
        weights = saved[-1] / "model"
    return models.load(weights).to(find_device(device)).eval(), tokenizer.load(folder.tokenizer_file)


def find_device(name: str) -> torch.device:
    """Returns the device "cpu" or "cuda"; "auto" is CUDA if there is one. Raises RunError if torch finds no CUDA."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RunError("device: cuda asked for (by the option or by the run's record), but torch finds no CUDA device")
    return torch.device(name)
