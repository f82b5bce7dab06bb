"""The output of a run while it trains: records, progress bar, checkpoints and the loss curve."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Collection
from typing import Any

import torch
from tqdm import tqdm

from fastlm.run_folder import RunError, RunFolder
from fastlm.train import checkpoint, pictures, report
from fastlm.train.metrics import Metrics
from fastlm.train.selection import Selection
from fastlm.train.trainer import Trainer, Update

READ_EVERY = {"cpu": 1, "cuda": 10}  # updates per read of the losses, which synchronises with the device


class Recorder:
    """Records the updates of a run in order. `state` is the state.json that the run resumes from, or None."""

    def __init__(self, trainer: Trainer, run: RunFolder, state: dict[str, Any] | None, name: str):
        self.trainer, self.run, self.name = trainer, run, name
        self.step, self.tokens, self.seconds = (
            (state[k] for k in ("step", "tokens", "seconds")) if state else (0, 0, 0.0)
        )
        self.metrics = Metrics(run.metrics_file, self.step)
        self._updates: list[Update] = []
        self._records: list[dict[str, Any]] = []
        self._validation: dict[str, str] = {}  # shown in the progress bar
        self._since = time.perf_counter()
        interval = 0.5 if sys.stderr.isatty() else 10.0
        self._bar = tqdm(
            total=trainer.plan.steps, initial=self.step, unit="step", dynamic_ncols=True, mininterval=interval
        )

    @property
    def is_full(self) -> bool:
        """Returns whether it is time to read and write the losses."""
        return len(self._updates) + len(self._records) >= READ_EVERY[self.trainer.device.type]

    def close(self) -> None:
        """Closes the progress bar and metrics.jsonl."""
        self._bar.close()
        self.metrics.close()

    def add(self, update: Update) -> None:
        """Keeps the next update; its losses are read later."""
        self._updates.append(update)

    def read(self) -> None:
        """Turns the updates since the last read into records. Synchronises with the device."""
        if not self._updates:
            return
        values = torch.stack([update.values for update in self._updates]).tolist()
        now = time.perf_counter()
        each = (now - self._since) / len(values)
        for update, row in zip(self._updates, values, strict=True):
            self.step, self.tokens, self.seconds = self.step + 1, self.tokens + update.tokens, self.seconds + each
            record = {"step": self.step, **dict(zip(self.trainer.names, row, strict=True))}
            record |= {"learning_rate": update.learning_rate, "tokens": self.tokens}
            record |= {"seconds": round(self.seconds, 3), "tokens_per_second": round(update.tokens / each)}
            self._require_finite(record)
            self._records.append(record)
        self._updates.clear()
        self._since = now

    def add_validation(self, metrics: dict[str, float]) -> None:
        """Adds the metrics of a validation to the last record. Its time does not count as training."""
        self._records[-1] |= {f"validation_{name}": value for name, value in metrics.items()}
        selected_by, titles = self.trainer.task.selected_by, self.trainer.task.metric_names
        self._validation["val"] = f"{metrics['loss']:.3f}"
        if selected_by != "loss":
            title, style = titles.get(selected_by, (selected_by, report.PLAIN))
            self._validation[title] = format(metrics[selected_by], style)
        self._since = time.perf_counter()

    def write(self) -> None:
        """Writes the records, and shows the mean of the last ones in the progress bar."""
        self.read()
        self.metrics.append(self._records)
        self._bar.set_postfix(
            loss=f"{_mean(self.metrics.last, 'loss'):.3f}",
            **self._validation,
            **{"tok/s": f"{_mean(self.metrics.last, 'tokens_per_second'):,.0f}"},
            refresh=False,
        )
        self._bar.update(len(self._records))
        self._records.clear()

    def save(self, identity: dict[str, Any], selection: Selection) -> None:
        """Writes a checkpoint and the curves. Raises OSError."""
        self.metrics.sync()
        state = {"tokens": self.tokens, "seconds": self.seconds, "best": selection.to_json()}
        trainer = self.trainer
        checkpoint.save(self.run.checkpoints, self.step, trainer.model, trainer.optimizer, identity=identity, **state)
        report.plot(self.metrics.curve, self.run.curve, title=self.name)
        if trainer.task.score_names:
            titles = {name: trainer.task.metric_names[name][0] for name in trainer.task.score_names}
            pictures.plot_scores(self.metrics.curve, self.run.scores, scores=titles, title=self.name)
        self._since = time.perf_counter()

    def _require_finite(self, record: dict[str, Any]) -> None:
        for name in self.trainer.names:
            if not math.isfinite(record[name]):
                raise RunError(
                    f"{name} became {record[name]} at step {record['step']}, with learning rate "
                    f"{record['learning_rate']:.2g}; start another run with a lower --learning-rate or a longer "
                    "--warmup; the checkpoints are kept"
                )


def _mean(records: Collection[dict[str, Any]], name: str) -> float:
    values = [record[name] for record in records]
    return sum(values) / len(values)
