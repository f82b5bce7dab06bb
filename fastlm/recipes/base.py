"""A recipe: model, corpus, training and devices of a run. Imports no torch."""

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
_DROPOUTS = ("attention_dropout", "embedding_dropout")  # `dropout` sets those that are not given


@dataclass(frozen=True)
class Recipe:
    """Holds all options of a run: the model, its corpus, the training, and the placement on devices.

    `make_task` makes the task of the recipe. It raises ValueError, with the option's name, if values contradict.
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
                f"--context {self.train.longest} makes a model of that length, "
                f"--phases {self.model.context} trains at the model's"
            )

    def task(self) -> Task:
        return self.make_task(self)

    def update_flops(self) -> int:
        """Returns the floating-point operations of an update at the longest sequence length."""
        length = self.train.longest
        return self.train.batch_size * length * self.model.flops_per_token(length)

    def with_options(self, given: Mapping[str, Any]) -> Recipe:
        """Returns this recipe with the given options replaced.

        steps, minutes and epochs replace each other. `dropout` also sets the dropouts that are not given, and `context`
        the length of the longest phase, if `phases` is not given, so that all positions are trained.
        Raises ValueError, with the option's name, for an option that this recipe does not have or an invalid value.
        """
        left, sections = dict(given), {}
        if "dropout" in left:
            left = {**dict.fromkeys(_DROPOUTS, left["dropout"]), **left}
        if any(name in left for name in LENGTHS):
            left = {**dict.fromkeys(LENGTHS), **left}
        if "context" in left and "phases" not in left:
            left["phases"] = self._phases_up_to(left["context"])
        for section in SECTIONS:
            config = getattr(self, section)
            names = {f.name for f in options(config)} & left.keys()
            sections[section] = overlay(config, {name: left.pop(name) for name in names})
        if left:
            raise ValueError(f"{', '.join(sorted(left))}: {self.name} has no such option")
        return replace(self, **sections)

    def _phases_up_to(self, context: int) -> tuple[tuple[float, int], ...]:
        """Returns the phases with the longest length replaced by `context`, and all others cut to it."""
        longest = self.train.longest
        return tuple((f, context if length == longest else min(length, context)) for f, length in self.train.phases)

    def to_json(self) -> dict[str, Any]:
        """Returns the recipe as the config.json of a run folder holds it."""
        return {"recipe": self.name, **{section: option_values(getattr(self, section)) for section in SECTIONS}}


def all_options(recipes: Mapping[str, Recipe]) -> list[Field]:
    """Returns the options of all recipes, each name once, in the order of SECTIONS."""
    found: dict[str, Field] = {}
    for section in SECTIONS:
        for recipe in recipes.values():
            for f in options(getattr(recipe, section)):
                found.setdefault(f.name, f)
    return list(found.values())
