"""A recipe: model, corpus, training and devices of a run. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
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
        if self.train.max_length > self.model.context:
            raise ValueError(
                f"phases: sequence length {self.train.max_length} is above the {self.model.context} of {self.name}; "
                f"--context {self.train.max_length} makes a model of that length, "
                f"--phases {self.model.context} trains at the model's"
            )

    def task(self) -> Task:
        return self.make_task(self)

    def size(self) -> str:
        """Describes what takes the memory of the run: the options, and the parameters that they make."""
        model = self._largest_model()
        names = [f.name for f in fields(model) if f.type == "int" and f.name != "heads"]
        options = ", ".join(f"{name} {getattr(model, name)}" for name in names)
        train = self.train
        return (
            f"{model.matrix_weights():,} parameters ({options}) and {train.batch_size // train.accumulation} sequences "
            f"of {train.max_length} tokens at a time (batch_size, accumulation)"
        )

    def check_memory(self, available: int) -> None:
        """Raises ValueError if `available` bytes are fewer than what any training with these options needs.

        That is, in fp32, each parameter with its gradient and Adam's two moments, and in 16 bits, per token and block,
        the two activations that the backward of the matrices reads at least: the input and the MLP's.
        """
        model, train = self._largest_model(), self.train
        tokens = train.micro_batch_size * train.max_length
        needed = 16 * model.matrix_weights() + 2 * tokens * model.layers * (model.hidden + model.intermediate)
        if needed > available:
            raise ValueError(
                f"memory: {self.size()} need at least {needed / 2**30:,.1f} GiB, and the device has "
                f"{available / 2**30:,.1f} GiB; give smaller values"
            )

    def _largest_model(self) -> ModelConfig:
        """Returns the model with the largest vocabulary that its tokenizer may have."""
        return replace(self.model, vocab_size=self.corpus.vocab_size)

    def update_flops(self) -> int:
        """Returns the floating-point operations of an update at the longest sequence length."""
        length = self.train.max_length
        return self.train.batch_size * length * self.model.flops_per_token(length)

    def with_options(self, given: Mapping[str, Any]) -> Recipe:
        """Returns this recipe with the given options replaced.

        steps, minutes and epochs replace each other, and so do warmup and warmup_fraction. `dropout` also sets the
        dropouts that are not given, and `context` the length of the longest phase, if `phases` is not given, so that
        all positions are trained. Raises ValueError, with the option's name, for an option that this recipe does not
        have or an invalid value.
        """
        left = replaced_together(given)
        if "dropout" in left:
            left = {**dict.fromkeys(_DROPOUTS, left["dropout"]), **left}
        if "context" in left and "phases" not in left:
            left["phases"] = self._phases_up_to(left["context"])
        return replace(self, **overlay_sections(self, SECTIONS, left))

    def _phases_up_to(self, context: int) -> tuple[tuple[float, int], ...]:
        """Returns the phases with the longest length replaced by `context`, and all others cut to it."""
        longest = self.train.max_length
        return tuple((f, context if length == longest else min(length, context)) for f, length in self.train.phases)

    def to_json(self) -> dict[str, Any]:
        """Returns the recipe as the config.json of a run folder holds it."""
        return {"recipe": self.name, **{section: option_values(getattr(self, section)) for section in SECTIONS}}


def replaced_together(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns given options, and None for those that they replace: other lengths of a run, another warm-up."""
    left = dict(given)
    if any(name in left for name in LENGTHS):
        left = {**dict.fromkeys(LENGTHS), **left}
    return {"warmup_fraction": None, **left} if "warmup" in left else left


def overlay_sections(recipe: Any, sections: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recipe's sections with the given options replaced. Raises ValueError for an option of no section."""
    left, made = dict(given), {}
    for section in sections:
        config = getattr(recipe, section)
        names = {f.name for f in options(config)} & left.keys()
        made[section] = overlay(config, {name: left.pop(name) for name in names})
    if left:
        raise ValueError(f"{', '.join(sorted(left))}: {recipe.name} has no such option")
    return made


def all_options(recipes: Mapping[str, Any], sections: Sequence[str] = SECTIONS) -> list[Field]:
    """Returns the options of all recipes, each name once, in the order of the sections."""
    found: dict[str, Field] = {}
    for section in sections:
        for recipe in recipes.values():
            for f in options(getattr(recipe, section)):
                found.setdefault(f.name, f)
    return list(found.values())
