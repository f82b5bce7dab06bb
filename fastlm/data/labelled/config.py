"""The labelled data of a fine-tuning run, and how its examples become inputs. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastlm._options import check_choices, option, require
from fastlm.data.labelled.examples import KINDS

if TYPE_CHECKING:
    from fastlm.data.labelled.formats import Columns, Format

BATCHING = ("auto", "padded", "binned", "packed")
ORDERS = ("auto", "one", "both")


@dataclass(frozen=True)
class LabelledConfig:
    """Names the files of a task and their format, and holds the limits of its inputs and the options of its head.

    `format` is a name that `find_format` knows. The columns and `kind` are for the generic tables ("tsv", "csv",
    "jsonl", "parquet"), `text_column` and `label_column` also for "conll". Raises ValueError, naming the option, for a
    value out of range.
    """

    format: str = option("the task: the name of its format, such as mrpc, squad2, swag, conll, tsv", "", flag="task")
    train_file: str = option("examples to learn from", "")
    dev_file: str = option("held-out examples, which select the best model", "")
    test_file: str | None = option("examples to predict at the end", None)
    kind: str = option(
        "what is learned from a table; auto: its format's, else classes", "auto", choices=("auto", *KINDS)
    )
    text_column: str | None = option("a table's column with the text (text)", None)
    pair_column: str | None = option("a table's column with the second text (none)", None)
    label_column: str | None = option("a table's column with the label (label)", None)
    id_column: str | None = option("a table's column with the id (the row's number)", None)
    max_length: int = option("longest input in tokens; longer ones are cut and counted", 128)
    doc_stride: int = option("tokens between the starts of the windows of a long context", 128)
    max_question: int = option("longest question in tokens, where the answer is a span", 64)
    max_answer: int = option("longest predicted span in tokens", 30)
    n_best: int = option("likeliest starts, ends and answers that are considered", 20)
    document_context: bool = option("surround a sentence to tag by its document, up to the longest input", False)
    orders: str = option(
        "orders in which a causal model reads a pair: one, both (similarity), or auto: both for mrpc, qqp and scores",
        "auto",
        choices=ORDERS,
    )
    class_weights: str = option("weights of the classes: none, balanced, or LABEL=WEIGHT,...", "none")
    lm_weight: float = option("weight of the language model's loss beside the task's, for causal models", 0.5)
    head_dropout: float = option("dropout of the head's input", 0.1)
    head_bias: bool = option("whether the head has a bias", True)
    from_scratch: bool = option("start with random weights of the same sizes, for comparison", False)
    batching: str = option(
        "how inputs of different lengths share a batch: padded to the longest input, binned (similar lengths "
        "together), packed (no padding), or auto: packed",
        "auto",
        choices=BATCHING,
    )

    def __post_init__(self) -> None:
        for name, least in (
            ("max_length", 8),
            ("doc_stride", 1),
            ("max_question", 1),
            ("max_answer", 1),
            ("n_best", 1),
        ):
            require(getattr(self, name) >= least, name, f"at least {least}", getattr(self, name))
        require(self.lm_weight >= 0, "lm_weight", "at least 0", self.lm_weight)
        require(0 <= self.head_dropout < 1, "head_dropout", "at least 0 and below 1", self.head_dropout)
        check_choices(self)
        self.parsed_class_weights()

    def columns(self) -> Columns | None:
        """Returns the columns that were given, or None if none was."""
        from fastlm.data.labelled.formats import Columns

        fields = {"text": self.text_column, "pair": self.pair_column, "label": self.label_column, "id": self.id_column}
        given = {name: column for name, column in fields.items() if column is not None}
        return Columns(**given) if given else None

    def find_format(self) -> Format:
        """Returns the format that the options name. Raises ValueError as `formats.find_format`."""
        from fastlm.data.labelled.formats import find_format

        kind = None if self.kind == "auto" else self.kind
        return find_format(self.format, columns=self.columns(), kind=kind)

    def parsed_class_weights(self) -> dict[str, float] | None:
        """Returns the weights by label, {} for "balanced", None for "none"."""
        text = self.class_weights
        if text in ("none", "balanced"):
            return None if text == "none" else {}
        weights = {}
        for entry in text.split(","):
            label, equals, number = entry.rpartition("=")
            try:
                weights[label] = float(number)
            except ValueError:
                equals = ""
            require(bool(equals) and weights.get(label, 0) > 0, "class_weights", "LABEL=WEIGHT,... above 0", text)
        return weights
