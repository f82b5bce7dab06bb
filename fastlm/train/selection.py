"""The best validation of a run, and early stopping."""

from __future__ import annotations

from typing import Any


class Selection:
    """Follows a run's validations. Of several with the best value the first one counts; NaN is never the best.

    step, value: of the best validation; None before there is one. waited: how many validations have passed since.
    """

    def __init__(self, metric: str, patience: int | None, state: dict[str, Any] | None):
        """state: what `to_json` returned in the run that is resumed."""
        self.metric, self.patience = metric, patience
        self.step: int | None = None
        self.value: float | None = None
        self.waited = 0
        if state:
            self.step, self.value, self.waited = state["step"], state["value"], state["waited"]

    def add(self, step: int, metrics: dict[str, float]) -> bool:
        """Adds the validation after `step` updates; returns whether it is the best one so far."""
        value = metrics[self.metric]
        if not self._is_better(value):
            self.waited += 1
            return False
        self.step, self.value, self.waited = step, value, 0
        return True

    @property
    def is_over(self) -> bool:
        """Returns whether the run's patience has ended."""
        return self.patience is not None and self.waited >= self.patience

    def to_json(self) -> dict[str, Any]:
        return {"metric": self.metric, "step": self.step, "value": self.value, "waited": self.waited}

    def _is_better(self, value: float) -> bool:
        if self.value is None:
            return value == value
        return value < self.value if self.metric == "loss" else value > self.value
