"""The folder of a run: its files and its record.

config.json                 the options, the identity of the data files, and the plan: steps, precision, sizes
tokenizer.json, data/       the tokenizer and the tokenised shards (of tasks on text)
metrics.jsonl               one line per update
checkpoints/step-N/         the last two, and the best one if it is kept (train/checkpoint.py); the model is in model/
loss.png, scores.png        the curves of the loss and of the validations' scores, written at each checkpoint
model/, report.{json,md}    written at the end, and confusion.png of tasks with labels
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

FORMATS = (1, 2)  # of config.json; 2 is written
_CHECKPOINT = re.compile(r"step-(\d+)")


class RunError(ValueError):
    """Reports a run that cannot be started, resumed or read; the message says why and what would help."""


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

    def exists(self) -> bool:
        """Returns whether the folder holds a run, with or without an update."""
        return self.config_file.is_file()

    def begun(self) -> bool:
        """Returns whether the folder holds a run that has made an update."""
        updated = self.metrics_file.is_file() and self.metrics_file.stat().st_size > 0
        return self.exists() and (updated or self.report.is_file() or bool(find_checkpoints(self.checkpoints)))

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

    def newest_model(self) -> Path:
        """Returns the folder of the trained model, or, of an unfinished run, of the last checkpoint's model.

        Raises RunError if there is neither.
        """
        self.recorded()
        if self.model.is_dir():
            return self.model
        saved = find_checkpoints(self.checkpoints)
        if not saved:
            raise RunError(f"run: {self.path} has neither model/ nor a checkpoint yet; train it first")
        return saved[-1] / "model"


def find_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints of a folder, oldest first. Unfinished ones are left out."""
    entries = folder.iterdir() if folder.is_dir() else ()
    found = {int(match[1]): path for path in entries if (match := _CHECKPOINT.fullmatch(path.name))}
    return [found[step] for step in sorted(found)]
