"""The papers' fine-tuning: Radford et al. 2018, section 4.1, and Devlin et al. 2019, section 4 and appendix A.3.

Both recipes follow the papers' own code where it says more than the papers do. `TASKS` has what differs by task.

"bert-paper": Adam without bias correction, epsilon 1e-6, decay 0.01, clipping at 1; linear decay over all updates,
replaced during the first tenth by linear warm-up, so that the first update has rate 0. Departures from the code:

- each epoch is a new permutation of all examples (the code shuffles within a buffer of 100), and an incomplete last
  batch is dropped per epoch (the code drops one at the end of the run)
- the dev set is evaluated after each epoch, and the model of the best one is kept (the paper takes the last epoch's,
  and the best of several rates: `--search`)

"gpt1-paper": Adam whose bias correction is a factor of the rate, so that epsilon stands outside it and the decay of
0.01 carries it; linear decay times warm-up over 0.2% of the updates, so that the first update has rate 0; the
language model's loss with weight 0.5, a mean per sequence and then over sequences; one mask of the head's dropout for
all choices of an example. Departures from the code:

- dropout on the summed embeddings, as in pretraining, not on the elements of the embedding matrix
- the language model's softmax is over tokens, start, delimiter and extract, not over the rows of the positions too
- inputs have their own length, up to max_length, and all positions are kept
- the dev set is evaluated after each epoch and every 1,000 updates (the code: after each epoch and, in the first one,
  after 1,000, 2,000, 4,000, 8,000 updates and so on)
- the seed is an option (the code: 42)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlm._options import option_values
from fastlm.data.labelled.config import LabelledConfig
from fastlm.data.labelled.formats import Format, find_format
from fastlm.device import Placement
from fastlm.recipes.base import all_options, overlay_sections, replaced_together
from fastlm.run_folder import RunError, RunFolder
from fastlm.train.config import TrainConfig

if TYPE_CHECKING:
    from fastlm.tasks.base import Task

SECTIONS = ("labelled", "train", "placement")


@dataclass(frozen=True)
class FinetuneRecipe:
    """Holds all options of a fine-tuning run: the pretrained model, labelled data, the training, and the placement.

    start: a run folder, a model's folder, or a folder of transformers. All inputs have one length at most,
    labelled.max_length, which is also the length of the training's only phase.
    """

    name: str
    labelled: LabelledConfig
    train: TrainConfig
    placement: Placement = field(default_factory=Placement)
    start: str = ""

    @property
    def title(self) -> str:
        """Names the fine-tuned model in a report."""
        return f"{Path(self.start).name} on {self.labelled.format}"

    def format(self) -> Format:
        """Returns the format of the data. Raises ValueError for an unknown one, or options that it does not have."""
        return self.labelled.find_format()

    def task(self) -> Task:
        """Returns the task. Raises ValueError, with the option's name, if values contradict."""
        from fastlm.tasks.labelled import labelled_task

        return labelled_task(self.start, self.labelled)

    def with_options(self, given: Mapping[str, Any]) -> FinetuneRecipe:
        """Returns this recipe with the given options replaced; a length or warm-up replaces one of another kind.

        Raises ValueError, with the option's name, for an option that it does not have or an invalid value.
        """
        left = {name: value for name, value in replaced_together(given).items() if name != "phases"}
        sections = overlay_sections(self, SECTIONS, left)
        phases = ((1.0, sections["labelled"].max_length),)
        return replace(self, **{**sections, "train": replace(sections["train"], phases=phases)})

    def to_json(self) -> dict[str, Any]:
        """Returns the recipe as the config.json of a run folder holds it."""
        sections = {section: option_values(getattr(self, section)) for section in SECTIONS}
        return {"recipe": self.name, "start": self.start, **sections}


_BERT = FinetuneRecipe(
    name="bert-paper",
    labelled=LabelledConfig(max_length=128, head_dropout=0.1),
    train=TrainConfig(
        epochs=3.0,
        batch_size=32,
        learning_rate=2e-5,
        warmup_fraction=0.1,
        decay="linear",
        schedule="warmup-replaces-decay",
        epsilon=1e-6,
        bias_correction=False,
        whole_epochs=True,
        validate_each_epoch=True,
        validation_batches=0,
        keep_best=True,
    ),
)
_GPT1 = FinetuneRecipe(
    name="gpt1-paper",
    labelled=LabelledConfig(max_length=512, head_dropout=0.1, lm_weight=0.5),
    train=replace(
        _BERT.train,
        learning_rate=6.25e-5,
        warmup_fraction=0.002,
        schedule="warmup-times-decay",
        epsilon=1e-8,
        rate_correction=True,
    ),
)

RECIPES = {recipe.name: recipe.with_options({"max_length": recipe.labelled.max_length}) for recipe in (_BERT, _GPT1)}
OPTIONS = [option for option in all_options(RECIPES, SECTIONS) if option.name != "phases"]

# The values that differ by the format of the data. BERT: section 4.2 (SQuAD 1.1), 4.3 (2.0), 4.4 (SWAG). All others,
# such as GLUE, have the values above; the paper also tries the rates 5e-5, 4e-5 and 3e-5 (section 4.1).
_CHOICES = {"batch_size": 16, "learning_rate": 2e-5}
TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "bert-paper": {
        "squad1": {"learning_rate": 5e-5, "max_length": 384},
        "squad2": {"learning_rate": 5e-5, "batch_size": 48, "epochs": 2.0, "max_length": 384},
        "conll": {"learning_rate": 5e-5},
        "swag": _CHOICES,
        "commonsenseqa": _CHOICES,
        "story-cloze": _CHOICES,
        "race": _CHOICES | {"max_length": 512},
    },
    "gpt1-paper": {},
}
_RECIPE_OF = {"bert": "bert-paper", "gpt1": "gpt1-paper", "openai-gpt": "gpt1-paper"}  # by model_type


def for_model(start: str, format: str, name: str | None = None) -> FinetuneRecipe:
    """Returns the paper's recipe for the model in `start` and the format of the data; `name` names another one.

    The longest input is at most the model's context; questions and strides are shorter in a shorter one. Raises
    RunError, or ValueError for a model that no recipe is for.
    """
    config = _model_config(start)
    if name is None:
        name = _RECIPE_OF.get(config.get("model_type", ""))
    if name not in RECIPES:
        if name is None and not Path(start).exists():
            raise ValueError(
                f"start: no such folder: {start!r}; with the name of a model on the hub give the recipe, too: one of "
                f"{', '.join(RECIPES)}"
            )
        given = f"none, and the model_type of {start} is {config.get('model_type')!r}" if name is None else repr(name)
        raise ValueError(f"recipe: one of {', '.join(RECIPES)} expected, got {given}")
    made = find_format(format)
    recipe = replace(RECIPES[name], start=start)
    recipe = recipe.with_options({"format": format, **TASKS[name].get(made.name, {})})
    contexts = [config[key] for key in ("context", "max_position_embeddings", "n_positions") if key in config]
    length = min([*contexts[:1], recipe.labelled.max_length])
    return recipe.with_options({"max_length": length, **_window(recipe.labelled, length)})


def _window(labelled: LabelledConfig, length: int) -> dict[str, int]:
    """Returns the longest question and the stride in windows of `length`: a third of it, at most BERT's values."""
    return {name: min(getattr(labelled, name), length // 3) for name in ("max_question", "doc_stride")}


def from_record(record: dict[str, Any]) -> FinetuneRecipe:
    """Returns the recipe that the config.json of a fine-tuning run holds.

    Raises KeyError, TypeError or ValueError if it holds anything else.
    """
    values = {name: value for section in SECTIONS for name, value in record[section].items()}
    return replace(RECIPES[record["recipe"]], start=record["start"]).with_options(values)


def _model_config(start: str) -> dict[str, Any]:
    """Returns config.json of a pretrained model; {} for what is no folder, such as the name of a hub's model."""
    folder = Path(start)
    if not folder.is_dir():
        return {}
    try:
        config = json.loads((_model_folder(folder) / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"start: {start} is neither a run nor a model's folder ({error})") from error
    return config if isinstance(config, dict) else {}


def _model_folder(folder: Path) -> Path:
    run = RunFolder(folder)
    is_run = run.model.is_dir() or run.checkpoints.is_dir()
    return run.newest_model() if is_run else folder
