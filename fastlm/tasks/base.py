"""The task: all that a training run is told of what it learns. The trainer and the loop know nothing else of it."""

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
    """Batches of one split at one sequence length; `batch(step)` depends on (seed, step) alone.

    `warnings`, where a dataset has it, lists sentences on the data that are said before training.
    """

    batches_per_epoch: int

    def batch(self, step: int) -> Batch: ...


class Group(NamedTuple):
    """Parameters that learn at `rate` times the schedule's learning rate."""

    parameters: list[nn.Parameter]
    rate: float = 1.0


class Task(ABC):
    """What a run learns.

    loss_names: the names of what `losses` returns; the first is minimised.
    data_version: raised when `prepare` makes something else of the same files.
    figure_names: the report's name of each figure and how it is written, in the order of the table.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("loss",)
    data_version: ClassVar[int] = 1
    figure_names: ClassVar[dict[str, tuple[str, str]]] = {"loss": ("loss", ".3f")}

    # Data --------------------------------------------------------------------------------------------------------

    def sources(self) -> list[Path]:
        """The files that the task's data is made from. A run folder keeps what was made from them while they stay."""
        return []

    @abstractmethod
    def prepare(self, folder: Path, notify: Notify) -> None:
        """Makes, in a run's folder, what the task reads while it trains; what is there already is taken as it is.

        It is kept in `data/` and `tokenizer.json`, which a run folder removes when they were made from something else.
        """

    def is_prepared(self, folder: Path) -> bool:
        """Whether all that `prepare` would make is in a run's folder."""
        return True

    def identity(self) -> dict[str, Any]:
        """What a prepared task is, as JSON: a checkpoint is only used for a task of the same identity."""
        return {}

    @abstractmethod
    def dataset(self, split: str, length: int, batch_size: int, seed: int) -> Dataset:
        """The batches of "train" or "validation". Raises DataError where the split holds too little for one batch."""

    @abstractmethod
    def tokens(self, batch: Batch) -> int:
        """Tokens of a batch that count as read."""

    # Model -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def build(self, backend: str) -> nn.Module:
        """Makes the model at the start of training, on the CPU.

        Of a model with `draw_seeds`, a training batch also holds "seeds" and "first_sequence", which `Model.forward`
        takes: the parts of an update then drop what the whole would drop.
        """

    def groups(self, model: nn.Module) -> Sequence[Group]:
        """The parameters that train, by their rate; by default all at the schedule's."""
        return [Group([p for p in model.parameters() if p.requires_grad])]

    # Figures -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """The losses of a batch, scalars, in the order of `loss_names`."""

    @abstractmethod
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Figures on some batches, over all of them together; "loss" is among them. The model is in eval mode."""

    def report(self, trainer: Trainer, name: str) -> dict[str, Any]:
        """What the finished run's report says of the held-out data.

        "scores": {name of a model: its figures}, the trained one under `name`; optionally "examples": lines of text,
        with "examples_title".
        """
        figures = trainer.evaluate(trainer.validation_batches())
        return {"scores": {name: figures}}

    def try_command(self, folder: Path) -> str | None:
        """A command that uses the finished run, or None."""
        return None
