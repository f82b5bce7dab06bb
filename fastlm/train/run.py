"""The run folder in training: a lock for one process, and checks that its content belongs to the requested run."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from fastlm.files import is_unfinished, remove_unfinished, write_json
from fastlm.run_folder import FORMATS, RunError, RunFolder
from fastlm.tasks.base import Task
from fastlm.train.config import TrainConfig
from fastlm.train.trainer import Plan

# Increased by 1 with every change after which the same command gives other losses: in tokenizers, sampling, models, ops
# on the CPU, optimizers or schedules. An unfinished run of another version is refused. A folder without one has version
# 0.
NUMERICS = 4

Notify = Callable[[str], None]
Record = dict[str, Any]

# Options that change no loss, so that a resumed run may change them.
FREE = tuple(f.name for f in fields(TrainConfig) if f.metadata.get("free"))
# Options that older records do not have: at these values a record is the same with and without them.
LATER = {f.name: f.default for f in fields(TrainConfig) if f.metadata.get("later")}
_OWN_ENTRIES = ("format", "numerics", "made_from", "plan", "versions")  # of config.json, beside the caller's record


class TrainingFolder(RunFolder):
    """Locks a run folder for one process. The lock ends with the process, also after kill -9."""

    def __init__(self, path: str | Path):
        super().__init__(path)
        self._lock: int | None = None
        self._made_from: dict[str, Any] | None = None

    def open(self, task: Task, record: Record, notify: Notify = print) -> None:
        """Locks the folder for a run of `task`, new or resumed; `record` is the configuration of the run, as JSON.

        A run without an update is replaced by any other run; its data is kept only if it was made from the same files
        with the same options. A run with an update keeps its data, and `notify` reports source files that have changed.

        Raises RunError if another process has the lock, if the folder holds a run of another record (the message names
        the differing fields) or of another numerics version, or if it is no run folder; DataError for missing files.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"run: {self.path} is a file; a folder is needed")
        names = os.listdir(self.path) if self.path.is_dir() else []
        if not self.exists() and any(name != ".lock" and not is_unfinished(name) for name in names):
            raise RunError(f"run: {self.path} is not empty and holds no run of fastlm; name another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        self._acquire()
        recorded = {}
        if self.exists():
            remove_unfinished(self.path)
            recorded = self.recorded()
        if not self.begun():
            self._start(task, record, recorded, notify)
            return
        if not self.report.is_file():
            self._check_numerics(recorded)
        different = differences(record, recorded)
        if different:
            raise RunError(
                f"run: {self.path} holds a run with another configuration: {', '.join(different)}; "
                "give the same options to resume it, or another --run"
            )
        if not self.report.is_file():
            self._check_data_files(task, recorded, notify)

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def record(self, record: Record, plan: Plan | None, **more: Any) -> None:
        """Writes config.json atomically, with the identity of the data files that `open` found."""
        kept = {"format": FORMATS[-1], "numerics": NUMERICS, "made_from": self._made_from}
        write_json(self.config_file, {**kept, **record, "plan": plan and asdict(plan), **more})

    def plan(self) -> Plan | None:
        """Returns the recorded plan; None if there is none yet. Raises RunError if the record holds something else."""
        plan = self.recorded()["plan"]
        try:
            return Plan(**plan) if plan else None
        except TypeError as error:
            names = ", ".join(field.name for field in fields(Plan))
            raise RunError(f"run: {self.config_file} is damaged: its plan must have {names}, got {plan}") from error

    def _start(self, task: Task, record: Record, before: dict[str, Any], notify: Notify) -> None:
        """Records a new run and its data files; removes data that was made from other files or options."""
        files = [_identity(path) for path in task.sources()]
        self._made_from = {"version": task.data_version, "files": files}
        same = before.get("numerics") == NUMERICS and not differences(record, before)
        if not (same and _contents(before.get("made_from")) == _contents(self._made_from)):
            if self.tokenizer_file.exists() or self.data.exists():
                notify(f"{self.path} has data that was made from other files or options; it is made again")
            self.tokenizer_file.unlink(missing_ok=True)
            if self.data.exists():
                shutil.rmtree(self.data)
        self.record(record, None)

    def _check_numerics(self, recorded: dict[str, Any]) -> None:
        """Raises RunError if the run was begun with another numerics version."""
        version, began = recorded.get("numerics", 0), recorded.get("versions", {}).get("fastlm")
        if (recorded["format"], version) != (FORMATS[-1], NUMERICS):
            raise RunError(
                f"run: {self.path} was begun with numerics version {version}, and this fastlm computes with version "
                f"{NUMERICS}, which gives other losses; finish it with the fastlm that began it"
                f"{f' (version {began})' if began else ''}, or give another --run"
            )

    def _check_data_files(self, task: Task, recorded: dict[str, Any], notify: Notify) -> None:
        """Reports data files that have changed. Raises RunError if the data would have to be made again from them."""
        complete = task.is_prepared(self.path)
        changes = [
            f"{before['path']} {change}"
            for before in recorded["made_from"]["files"]
            if (change := _change(before, read=not complete))
        ]
        if changes and complete:
            notify(f"data: {', '.join(changes)}; the run continues with its original text, kept in {self.data}")
        elif changes:
            raise RunError(
                f"run: {self.path} has lost its tokenizer or its shards, and they cannot be made again: "
                f"{', '.join(changes)}; put the old data back, or give another --run"
            )

    def _acquire(self) -> None:
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise RunError(f"run: another process is training in {self.path}") from error


def differences(record: Record, recorded: dict[str, Any]) -> list[str]:
    """Lists the fields in which two runs differ, with both values; fields that change no loss are left out."""
    return list_differences(_loss_fields(record), _loss_fields(recorded))


def list_differences(now: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Lists the names whose values differ, with both values."""
    missing = object()
    return [
        f"{name} (now {_repr_of(now, name)}, there {_repr_of(there, name)})"
        for name in {**now, **there}
        if now.get(name, missing) != there.get(name, missing)
    ]


def identity(record: Record, plan: Plan) -> dict[str, Any]:
    """Returns all that determines a run, {name: value as in JSON}. Its checkpoints hold this."""
    return _loss_fields(record) | {f"plan.{name}": value for name, value in _as_in_json(asdict(plan)).items()}


def _as_in_json(content: Any) -> Any:
    return json.loads(json.dumps(content))


def _loss_fields(record: Record) -> dict[str, Any]:
    """Returns the fields of all sections of a record that change a loss, by name, with values as in JSON.

    Later options at their default are left out, so that a run without them can be resumed.
    """
    found: dict[str, Any] = {}
    for section, values in _as_in_json(record).items():
        if section not in _OWN_ENTRIES:
            found |= values if isinstance(values, dict) else {section: values}
    return {n: value for n, value in found.items() if n not in FREE and not (n in LATER and value == LATER[n])}


def _repr_of(values: Mapping[str, Any], name: str) -> str:
    return repr(values.get(name, LATER.get(name))) if name in values or name in LATER else "(not there)"


def _identity(path: Path) -> dict[str, Any]:
    """Returns the size, modification time and SHA-256 of a data file.

    The SHA-256 decides whether a file is the same. Size and time do not: `cp -p`, `rsync -t` and archives can bring
    other text of the same size and time, and a copy of the same text has another time. Hashing a file takes far less
    time than tokenising it.
    """
    status = path.stat()
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": str(path), "bytes": status.st_size, "modified_ns": status.st_mtime_ns, "sha256": digest}


def _contents(made_from: dict[str, Any] | None) -> tuple[int, list[str]] | None:
    """Returns what must be equal for prepared data to be used again; `differences` compares the paths."""
    return made_from and (made_from["version"], [file["sha256"] for file in made_from["files"]])


def _change(before: dict[str, Any], *, read: bool) -> str | None:
    """Returns how a data file has changed, or None. Without `read`, a file of the same size and time is unchanged."""
    path = Path(before["path"])
    if not path.is_file():
        return "is gone"
    status = path.stat()
    same = (status.st_size, status.st_mtime_ns) == (before["bytes"], before["modified_ns"])
    return None if (same and not read) or _identity(path)["sha256"] == before["sha256"] else "has changed"
