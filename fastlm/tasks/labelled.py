"""The base of the fine-tuning tasks: labelled examples, a pretrained model with a new head, and the format's scores."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fastlm import models
from fastlm.data.corpus import DataError
from fastlm.data.inputs import GPT1_SPECIALS, Template
from fastlm.data.labelled.batches import LabelledBatches
from fastlm.data.labelled.config import LabelledConfig
from fastlm.data.labelled.description import TASK_FILE, Description
from fastlm.data.labelled.encode import Encodings, encode
from fastlm.data.labelled.examples import Example, Kind
from fastlm.data.labelled.labels import check_dev_labels, label_names
from fastlm.data.labelled.stored import read_examples, write_examples
from fastlm.data.tokenizer import Tokenizer
from fastlm.data.tokenizer import load as load_tokenizer
from fastlm.evaluate.baselines import baseline_scores
from fastlm.evaluate.scores import SCORES, library, score_all, scores_for, targets
from fastlm.files import named_tensors, new_folder, write_json
from fastlm.inference.heads import task_head
from fastlm.inference.load import load_pretrained
from fastlm.inference.outputs import predictions, read_outputs
from fastlm.inference.scoring import score_predictions
from fastlm.models import Model, ModelConfig
from fastlm.nn import Head, SequenceLMHead
from fastlm.run_folder import RunFolder
from fastlm.tasks.base import Batch, Group, Notify, Task
from fastlm.tasks.groups import layer_groups

if TYPE_CHECKING:
    from fastlm.train.trainer import Trainer

SIMILARITY = ("mrpc", "qqp")  # classes of pairs without an order (GPT-1, section 4.2, semantic similarity)
BASELINE_EXAMPLES = 20_000  # training examples that the baselines are fitted on, at most
SHOWN = 6  # examples in a report


class LabelledTask(Task):
    """Learns from labelled examples, with the model in `start`: a run folder, a model's folder, or transformers'.

    metric_names: the format's scores, then the losses. selected_by: the format's first score. With an auxiliary
    language model (GPT-1, section 3.2, L3 = L2 + lambda L1) the losses are L3, L2 and lambda L1.

    A run folder's data/ holds train.npz (see `Encodings`), validation.jsonl (the examples themselves, whose texts the
    scores need), baselines.jsonl (training examples, at most BASELINE_EXAMPLES) and task.json. Subclasses define what
    is special about a kind of task.

    limit: if set before `prepare`, about so many examples of each file are taken, spread over it, for a trial of the
    whole recipe. read_counts: (training, dev) examples of the files that `prepare` read; None if it read none.
    """

    def __init__(self, start: str | Path, labelled: LabelledConfig):
        self.start, self.labelled = start, labelled
        self.format = labelled.find_format()
        if labelled.class_weights != "none" and self.format.kind != "classification":
            raise ValueError(f"class_weights: they are for classification, not for {self.format.kind}")
        self._set_scores(self.format.scores)
        self.limit: int | None = None
        self.read_counts: tuple[int, int] | None = None

    # For subclasses to define ------------------------------------------------------------------------------------

    def check_examples(self, train: Sequence[Any], labels: Sequence[str], notify: Notify) -> None:
        """Raises DataError for training examples that nothing can be learned from."""

    def check_encodings(self, examples: Sequence[Any], encoded: Encodings, source: str, notify: Notify) -> None:
        """Tells `notify` how many inputs were cut."""
        if warning := encoded.cut_warning(source, self.labelled.max_length):
            notify(warning)

    def class_weights(self) -> list[float] | None:
        """Returns the weights of the classes in the loss."""
        return None

    def item_weights(self, encoded: Encodings) -> np.ndarray:
        """Returns how much each item counts in a mean loss, (items,)."""
        return encoded.predicted

    def scores(self, model: Model, examples: Sequence[Example], predicted: list[dict[str, Any]]) -> dict[str, float]:
        """Returns the scores of a prediction per example."""
        return score_predictions(self.description, examples, predicted)

    def show(self, example: Any, prediction: dict[str, Any]) -> tuple[str, bool]:
        """Returns an example with its prediction as a line of the report, and whether the prediction is right."""
        raise NotImplementedError(f"{type(self).__name__}: a task defines how its examples are shown")

    def confusion(self, examples: Sequence[Any], predicted: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """Returns the confusion matrix, see `Task.report`, or None if there is none."""
        return None

    # Data --------------------------------------------------------------------------------------------------------

    def sources(self) -> list[Path]:
        """Returns the training and the dev file (all files of a folder). Raises DataError if one is not there."""
        found = []
        for name in ("train_file", "dev_file"):
            path = Path(getattr(self.labelled, name))
            if not getattr(self.labelled, name) or not path.exists():
                raise DataError(f"{name}: a file of labelled examples expected, got {str(path)!r}")
            found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        return found

    def is_prepared(self, folder: Path) -> bool:
        run = RunFolder(folder)
        files = (run.data / name for name in ("train.npz", "baselines.jsonl", "validation.jsonl", TASK_FILE))
        return run.tokenizer_file.is_file() and all(file.is_file() for file in files)

    def prepare(self, folder: Path, notify: Notify) -> None:
        """Reads, checks and encodes the examples. Raises DataError with file and line, or ValueError for an option."""
        library("sklearn")  # scores and baselines need it: a missing one is found before the training
        run = RunFolder(folder)
        self.config, tokenizer, self.weights_hash = self._read_start()
        if not self.is_prepared(folder):
            with new_folder(run.data) as data:
                self._prepare_data(data, tokenizer, notify)
            tokenizer.save(run.tokenizer_file)
        self.tokenizer = load_tokenizer(run.tokenizer_file)
        if self.tokenizer.hash != tokenizer.hash:
            raise DataError(f"start: {self.start} has another tokenizer than the data in {folder} was made with")
        self._read_data(run.data)

    def identity(self) -> dict[str, Any]:
        return {
            "kind": self.description.kind,
            "labels": list(self.description.labels),
            "train_inputs": len(self.encoded),
            "validation_examples": len(self.examples),
            "tokenizer_hash": self.tokenizer.hash,
            "weights_hash": self.weights_hash,
        }

    def dataset(self, split: str, length: int, batch_size: int, seed: int) -> LabelledBatches:
        """Returns the batches of a split. Raises ValueError for a length other than max_length."""
        if length != self.labelled.max_length:
            raise ValueError(f"length: max_length {self.labelled.max_length} expected, got {length}")
        train, task = split == "train", self.description
        encoded = self.encoded if train else self.encoded_validation
        return LabelledBatches(
            encoded,
            batch_size,
            seed,
            layout=self._layout() if train else "binned",
            train=train,
            source=self.labelled.train_file if train else self.labelled.dev_file,
            weights=self.item_weights(encoded),
            pad=self.template.pad,
            rows=task.kind in ("classification", "regression", "choice"),
            segments=not self.template.causal,
            next_tokens=self.has_lm,
        )

    def tokens(self, batch: Batch) -> int:
        return batch["tokens"].numel() if "cu_seqlens" in batch else int(batch["lengths"].sum())

    # Model -------------------------------------------------------------------------------------------------------

    def build(self, backend: str) -> Model:
        """Builds the pretrained model with a fresh head, and with new tokens where the tokenizer has them."""
        rows = max(self.config.vocab_size, self.tokenizer.vocab_size)
        if self.labelled.from_scratch:
            model = models.build(replace(self.config, vocab_size=rows), self._heads(backend), backend=backend)
        else:
            model, _ = load_pretrained(self.start, {}, backend=backend)
            if rows > model.config.vocab_size:
                models.grow_vocabulary(model, rows - model.config.vocab_size)
            heads = self._heads(backend)
            model.add_heads(heads)
            for head in heads.values():
                model.initialise(head)
        model.companions[TASK_FILE] = self.description.to_json()
        return model

    def groups(self, model: nn.Module) -> list[Group]:
        return layer_groups(model)

    def _heads(self, backend: str) -> dict[str, Head]:
        task = self.description
        options = {"class_weights": self.class_weights(), "shared_dropout": self.template.causal, "backend": backend}
        heads: dict[str, Head] = {task.head: task_head(task, self.config.hidden, **options)}
        if self.has_lm:
            heads["lm"] = SequenceLMHead(weight=self.labelled.lm_weight, backend=backend)
        return heads

    # Metrics -----------------------------------------------------------------------------------------------------

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        bound = {"max_seqlen": self.labelled.max_length} if "cu_seqlens" in batch else {}
        return self._losses_of(model(**batch, **bound))

    def _losses_of(self, output: models.ModelOutput) -> tuple[Tensor, ...]:
        parts = (output.losses[self.description.head], output.losses["lm"]) if self.has_lm else ()
        return output.loss, *parts

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Returns the losses and the scores of the first validation batches; those of a cut-off example count too."""
        outputs, losses, weight = [], torch.zeros(len(self.loss_names), dtype=torch.float64), 0.0
        weights = self.item_weights(self.encoded_validation)
        for batch in batches:
            inputs = {name: tensor for name, tensor in batch.items() if name != "items"}
            result = model(**inputs)
            counted = float(weights[batch["items"].cpu().numpy()].sum())
            losses += counted * torch.stack(self._losses_of(result)).double().cpu()
            weight += counted
            outputs += read_outputs(model, self.description, result.hidden, batch)
        self.predicted = predictions(self.description, self.examples, self.encoded_validation, outputs)
        scores = self.scores(model, self.examples[: len(self.predicted)], self.predicted)
        means = (losses / (weight or 1.0)).tolist()
        return dict(zip(self.loss_names, means, strict=True)) | scores

    def report(self, trainer: Trainer, name: str) -> dict[str, Any]:
        """Reports the scores of the model and of the baselines on all dev examples, and examples it gets wrong."""
        scores = trainer.evaluate(trainer.validation_batches())
        shown = [self.show(*pair) for pair in zip(self.examples, self.predicted, strict=True)]
        wrong = [line for line, right in shown if not right][:SHOWN]
        result = {
            "scores": self._baselines() | {name: scores},
            "examples_title": "Dev examples that it gets wrong" if wrong else "Dev examples",
            "examples": wrong or [line for line, _ in shown[:SHOWN]],
        }
        confusion = self.confusion(self.examples, self.predicted)
        return result | ({"confusion": confusion} if confusion else {})

    def try_command(self, folder: Path) -> str:
        return f"fastlm predict {shlex.quote(str(folder))} FILE"

    # Inside ------------------------------------------------------------------------------------------------------

    def _set_scores(self, names: Sequence[str]) -> None:
        self.score_names = tuple(names)
        self.selected_by = names[0]
        self.metric_names = {name: (SCORES[name].title, SCORES[name].number_format) for name in names}
        self.metric_names |= {"loss": ("loss", ".3f"), "task_loss": ("task loss", ".3f"), "lm_loss": ("LM loss", ".3f")}

    def _read_start(self) -> tuple[ModelConfig, Tokenizer, str]:
        """Returns the start's configuration, its tokenizer with the special tokens of inputs, and its weights' hash."""
        model, tokenizer = load_pretrained(self.start, {})
        if self.labelled.max_length > model.config.context:
            raise ValueError(
                f"max_length: at most {model.config.context}, the context of {self.start}, expected, "
                f"got {self.labelled.max_length}"
            )
        digest = hashlib.sha256()
        for name, tensor in named_tensors(model).items():
            digest.update(name.encode() + tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
        specials = GPT1_SPECIALS if tokenizer.kind == "bpe" else ()
        return model.config, tokenizer.with_specials(specials), digest.hexdigest()

    def _prepare_data(self, data: Path, tokenizer: Tokenizer, notify: Notify) -> None:
        train_file, dev_file = Path(self.labelled.train_file), Path(self.labelled.dev_file)
        notify(f"reading {train_file} and {dev_file}")
        train, dev = self.format.read(train_file, notify), self.format.read(dev_file, notify)
        labels: tuple[str, ...] = ()
        if self.format.kind in ("classification", "tagging"):
            labels = self.format.labels or label_names(train)
            check_dev_labels(train, dev, labels, notify)
        self.check_examples(train, labels, notify)
        self.read_counts = (len(train), len(dev))
        train, dev = self._limited(train), self._limited(dev)
        task = self._describe(train, labels, tokenizer, scores_for(self.format, labels, notify))
        if task.kind in ("classification", "regression"):  # a library that a score lacks is found before the training
            gold = targets(dev, labels)
            score_all(task.scores, gold, gold)
        for name, examples in (("train_file", train), ("dev_file", dev)):
            encoded = encode(examples, tokenizer, task, targets=True)
            self.check_encodings(examples, encoded, getattr(self.labelled, name), notify)
            if name == "train_file":
                encoded.save(data / "train.npz")
        write_examples(data / "baselines.jsonl", every_nth(train, BASELINE_EXAMPLES))
        write_examples(data / "validation.jsonl", dev)
        write_json(data / TASK_FILE, task.to_json())

    def _limited(self, examples: list[Example]) -> list[Example]:
        return examples if self.limit is None else every_nth(examples, self.limit)

    def _describe(
        self, train: Sequence[Example], labels: tuple[str, ...], tokenizer: Tokenizer, scores: Sequence[str]
    ) -> Description:
        labelled, kind = self.labelled, self.format.kind
        pairs = getattr(train[0], "pair", None) is not None
        similarity = kind == "regression" or self.format.name in SIMILARITY
        causal = Template.of(tokenizer, labelled.max_length).causal
        both = labelled.orders == "both" or (labelled.orders == "auto" and causal and pairs and similarity)
        if both and not pairs:
            raise ValueError(f"orders: both is for pairs of texts, which {labelled.train_file} does not have")
        shared = ("max_length", "doc_stride", "max_question", "max_answer", "n_best", "document_context")
        options = {name: getattr(labelled, name) for name in (*shared, "head_dropout", "head_bias")}
        return Description(
            kind,
            labels,
            pairs=pairs if kind in ("classification", "regression") else None,
            format=self.format.name,
            scores=tuple(scores),
            both_orders=both,
            no_answer=any(name.startswith("squad2") for name in scores),
            **options,
        )

    def _read_data(self, data: Path) -> None:
        """Reads what `_prepare_data` wrote, and encodes the dev examples."""
        self._data, self.description = data, Description.read(data / TASK_FILE)
        self._set_scores(self.description.scores)
        self.template = Template.of(self.tokenizer, self.labelled.max_length)
        self.has_lm = self.template.causal and self.labelled.lm_weight > 0
        self.loss_names = ("loss", "task_loss", "lm_loss") if self.has_lm else ("loss",)
        self.encoded = Encodings.load(data / "train.npz")
        self.examples = read_examples(data / "validation.jsonl", self.description.kind)
        options = {"targets": True, "places": True}
        self.encoded_validation = encode(self.examples, self.tokenizer, self.description, **options)

    def _layout(self) -> str:
        return "packed" if self.labelled.batching == "auto" else self.labelled.batching

    def _baselines(self) -> dict[str, dict[str, float]]:
        """Returns the baselines' scores."""
        fitted = read_examples(self._data / "baselines.jsonl", self.description.kind)
        note = "" if len(fitted) == self.encoded.example[-1] + 1 else f" ({len(fitted):,} examples)"
        task = self.description
        found = baseline_scores(task.kind, self.score_names, fitted, self.examples, task.labels)
        return {f"{name}{note}": scores for name, scores in found.items()}


def labelled_task(start: str | Path, labelled: LabelledConfig) -> LabelledTask:
    """Returns the task of a format's kind. Reads no data yet.

    `dataset(split, length, ...)` takes the one length `labelled.max_length`, so phases are ((1.0, max_length),).
    Raises ValueError for an unknown format or for options that it does not have.
    """
    from fastlm.tasks.classification import Classification
    from fastlm.tasks.multiple_choice import MultipleChoice
    from fastlm.tasks.regression import Regression
    from fastlm.tasks.span import Span
    from fastlm.tasks.tagging import Tagging

    classes: dict[Kind, type[LabelledTask]] = {
        "classification": Classification,
        "regression": Regression,
        "choice": MultipleChoice,
        "span": Span,
        "tagging": Tagging,
    }
    return classes[labelled.find_format().kind](start, labelled)


def every_nth(examples: Sequence[Example], count: int) -> Sequence[Example]:
    """Returns at most `count` of the examples, spread over them."""
    return examples[:: -(-len(examples) // count)]


def shorten(text: str, size: int = 100) -> str:
    """Returns a text on one line, of at most about `size` characters."""
    line = " ".join(text.split())
    return line if len(line) <= size else f"{line[: size - 3]}..."
