"""The interface between a training run and its task. The trainer and the loop know tasks only by it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from fastlm.train.trainer import Trainer

Batch = dict[str, Tensor]
Notify = Callable[[str], None]


class Dataset(Protocol):
    """Makes the batches of one split at one sequence length; `batch(step)` depends on (seed, step) alone.

    A dataset may also have `warnings`: sentences about the data, which are shown before training; and `weight(step)`:
    how much the loss of a batch counts in the mean over the micro-batches of an update, such as the number of its
    predicted tokens. Otherwise all count the same.
    """

    batches_per_epoch: int

    def batch(self, step: int) -> Batch: ...


class Group(NamedTuple):
    """Holds parameters that learn at `rate` times the schedule's learning rate.

    depth: the place of a layer between input and output, for the layer-wise decay of rates (ELECTRA, Clark et al. 2020,
    appendix B); None, if groups have no order. new: whether the layers are not pretrained; TrainConfig.head_rate then
    multiplies their rate. name: shown to users.
    """

    parameters: list[nn.Parameter]
    rate: float = 1.0
    depth: int | None = None
    new: bool = False
    name: str = ""


class Task(ABC):
    """Defines what a run learns.

    loss_names: the names of the losses that `losses` returns; the first one is minimised.
    data_version: increased when `prepare` gives another result for the same files.
    metric_names: {metric: (its title in the report, its number format)}, in the order of the report's table.
    score_names: metrics of `evaluate` that are drawn over the updates.
    selected_by: the metric of `evaluate` that selects the best model: the lowest "loss", the highest of any other.
    validation_hint: what else would help, beside the advice of a DataError, if the validation split is too small.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("loss",)
    data_version: ClassVar[int] = 1
    metric_names: ClassVar[dict[str, tuple[str, str]]] = {"loss": ("loss", ".3f")}
    score_names: ClassVar[tuple[str, ...]] = ()
    selected_by: ClassVar[str] = "loss"
    validation_hint: ClassVar[str] = ""

    # Data --------------------------------------------------------------------------------------------------------

    def sources(self) -> list[Path]:
        """Returns the files that the data is made from. A run folder keeps prepared data until one of them changes."""
        return []

    @abstractmethod
    def prepare(self, folder: Path, notify: Notify) -> None:
        """Makes the data that the task reads in training, in a run folder. Uses data that is already there.

        The data is `data/` and `tokenizer.json`; a run folder removes both if their source files or options change.
        """

    def is_prepared(self, folder: Path) -> bool:
        """Returns whether a run folder already holds all that `prepare` makes."""
        return True

    def identity(self) -> dict[str, Any]:
        """Identifies a prepared task, as JSON. A checkpoint is only used for a task with the same identity."""
        return {}

    @abstractmethod
    def dataset(self, split: str, length: int, batch_size: int, seed: int) -> Dataset:
        """Returns the dataset of "train" or "validation". Raises DataError if the split is too small for one batch."""

    @abstractmethod
    def tokens(self, batch: Batch) -> int:
        """Returns how many tokens a batch holds, padding not counted."""

    def sequences(self, batch: Batch) -> int:
        """Returns how many sequences a batch holds: (B, S) tokens, or packed (T,) tokens with (B + 1,) cu_seqlens."""
        return len(batch["cu_seqlens"]) - 1 if "cu_seqlens" in batch else len(batch["tokens"])

    # Model -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def build(self, backend: str) -> nn.Module:
        """Builds the model at the start of training, on the CPU.

        If the model has `draw_seeds`, its training batches also hold "seeds" and "first_sequence", for `Model.forward`:
        the micro-batches of an update then draw the dropout masks that the whole batch would draw.
        """

    def groups(self, model: nn.Module) -> Sequence[Group]:
        """Groups the trained parameters by their rate; by default all learn at the schedule's rate.

        `fastlm.tasks.groups.layer_groups` makes a group per layer of a model.
        """
        return [Group([p for p in model.parameters() if p.requires_grad])]

    # Metrics -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """Returns the losses of a batch, scalars, in the order of `loss_names`."""

    @abstractmethod
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Returns metrics over all the given batches together, "loss" among them. The model is in eval mode."""

    def report(self, trainer: Trainer, name: str) -> dict[str, Any]:
        """Returns the task's part of a finished run's report, on the held-out data.

        "scores": {model: its metrics}, with the trained model under `name` and any baselines beside it. Optional:
        "examples", lines of text, and "examples_title"; "confusion": {"labels": names, "counts": per true label a row
        with a count per predicted label}, which is drawn.
        """
        return {"scores": {name: trainer.evaluate(trainer.validation_batches())}}

    def try_command(self, folder: Path) -> str | None:
        """Returns a command that uses the finished run, or None."""
        return None
