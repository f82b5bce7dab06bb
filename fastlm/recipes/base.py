"""A recipe: what to learn, how, and where. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fastlm._options import option_values, options, overlay
from fastlm.data.config import CorpusConfig
from fastlm.device import Placement
from fastlm.models.configs import ModelConfig
from fastlm.train.config import LENGTHS, TrainConfig

if TYPE_CHECKING:
    from fastlm.tasks.base import Task

SECTIONS = ("model", "corpus", "train", "placement")
_DROPOUTS = ("attention_dropout", "embedding_dropout")  # follow `dropout` where they are not given


@dataclass(frozen=True)
class Recipe:
    """The values of a kind of run: a model and its corpus, how it is trained, and where it computes.

    make_task: makes the task of the recipe. Raises ValueError, naming the option, for values that do not fit together.
    """

    name: str
    make_task: Callable[[Recipe], Task] = field(repr=False, compare=False)
    model: ModelConfig
    corpus: CorpusConfig
    train: TrainConfig
    placement: Placement = field(default_factory=Placement)

    def __post_init__(self) -> None:
        if self.train.longest > self.model.context:
            raise ValueError(
                f"phases: sequence length {self.train.longest} is above the {self.model.context} of {self.name}; "
                f"--context {self.train.longest} makes a model of that length"
            )

    def task(self) -> Task:
        return self.make_task(self)

    def update_flops(self) -> int:
        """Floating-point operations of an update at the longest sequence length."""
        length = self.train.longest
        return self.train.batch_size * length * self.model.flops_per_token(length)

    def with_options(self, given: Mapping[str, Any]) -> Recipe:
        """This recipe with other values, by the names of the options.

        One of steps, minutes and epochs takes the place of another; a dropout that is not given follows `dropout`.
        Raises ValueError, naming the option, for one that the recipe's model has not, or a value that makes no sense.
        """
        left, sections = dict(given), {}
        if "dropout" in left:
            left = {**dict.fromkeys(_DROPOUTS, left["dropout"]), **left}
        if any(name in left for name in LENGTHS):
            left = {**dict.fromkeys(LENGTHS), **left}
        for section in SECTIONS:
            config = getattr(self, section)
            names = {f.name for f in options(config)} & left.keys()
            sections[section] = overlay(config, {name: left.pop(name) for name in names})
        if left:
            raise ValueError(f"{', '.join(sorted(left))}: {self.name} has no such option")
        return replace(self, **sections)

    def to_json(self) -> dict[str, Any]:
        """The recipe as a run folder records it."""
        return {"recipe": self.name, **{section: option_values(getattr(self, section)) for section in SECTIONS}}


def all_options(recipes: Mapping[str, Recipe]) -> list[Field]:
    """The options of all recipes together, each once, in the order of the sections."""
    found: dict[str, Field] = {}
    for section in SECTIONS:
        for recipe in recipes.values():
            for f in options(getattr(recipe, section)):
                found.setdefault(f.name, f)
    return list(found.values())
