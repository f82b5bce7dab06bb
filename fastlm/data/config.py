"""The text of a run, and the tokenizer that is trained on it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from fastlm._options import INTEGERS_END, check_choices, option, require
from fastlm.data.corpus import DOCUMENT


@dataclass(frozen=True)
class CorpusConfig:
    """Names the text files, how they divide into documents, and the held-out part.

    Raises ValueError, naming the option, for a value out of range.
    """

    data: tuple[str, ...] = option("text files: .txt or .jsonl, each also as .xz or .gz (none: the bundled novels)", ())
    document: str = option("what ends a document in a .txt", "blank-line", choices=DOCUMENT)
    validation_fraction: float = option("fraction of the documents held out for validation", 0.05)
    vocab_size: int = option("entries of the tokenizer that is trained on the data", 4096)

    def __post_init__(self) -> None:
        require(1 <= self.vocab_size < INTEGERS_END, "vocab_size", "at least 1 and below 2^31", self.vocab_size)
        fraction = self.validation_fraction
        require(0 < fraction < 1, "validation_fraction", "above 0 and below 1", fraction)
        check_choices(self)
