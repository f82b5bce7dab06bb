"""The base of both pretraining tasks: from text files to a tokenizer and shards, and the examples of a report."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fastlm import models
from fastlm.data import corpus, tokenizer
from fastlm.data.config import CorpusConfig
from fastlm.data.shards import FORMAT, Shards, Split, prepare
from fastlm.data.tokenizer import Tokenizer
from fastlm.models import ModelConfig
from fastlm.run_folder import RunFolder
from fastlm.tasks.base import Notify, Task

EXAMPLES = 4  # in a report


class Pretraining(Task):
    """Learns from raw text: trains a tokenizer on it, makes shards, builds a model with the tokenizer's vocabulary."""

    data_version = FORMAT
    validation_hint = ", or a larger validation_fraction"

    def __init__(self, model: ModelConfig, corpus: CorpusConfig):
        self.model, self.corpus = model, corpus
        self.tokenizer: Tokenizer | None = None
        self.shards: Shards | None = None

    @abstractmethod
    def train_tokenizer(self, documents: Iterable[str], vocab_size: int) -> Tokenizer:
        """Trains a tokenizer of at most `vocab_size` entries on documents that can be read twice."""

    def sources(self) -> list[Path]:
        """Returns the text files. Raises DataError for a file that does not exist or has an unknown suffix."""
        return self._documents().paths

    def is_prepared(self, folder: Path) -> bool:
        run = RunFolder(folder)
        return run.tokenizer_file.is_file() and run.data.is_dir()

    def prepare(self, folder: Path, notify: Notify) -> None:
        run, config = RunFolder(folder), self.corpus
        if run.tokenizer_file.is_file():
            self.tokenizer = tokenizer.load(run.tokenizer_file)
        else:
            documents = self._documents()
            notify(f"training a tokenizer of {config.vocab_size} entries on {documents}")
            self.tokenizer = self.train_tokenizer(documents, config.vocab_size)
            self.tokenizer.save(run.tokenizer_file)
        if not run.data.is_dir():
            notify(f"tokenising into {run.data}")
            options = {"validation_fraction": config.validation_fraction, "document": config.document}
            prepare(self._documents().paths, run.data, self.tokenizer, **options)
        self.shards = Shards.open(run.data, self.tokenizer)
        for warning in self.shards.warnings:
            notify(warning)

    def identity(self) -> dict[str, Any]:
        return {"vocab_size": self.tokenizer.vocab_size, "tokenizer_hash": self.tokenizer.hash}

    def build(self, backend: str) -> nn.Module:
        return models.build(replace(self.model, vocab_size=self.tokenizer.vocab_size), backend=backend)

    def _documents(self) -> corpus.Documents:
        return corpus.read_documents(list(self.corpus.data) or [corpus.novels()], document=self.corpus.document)


def held_out_sentences(split: Split) -> Iterator[list[int]]:
    """Yields up to EXAMPLES sentences of 12 to 40 tokens, spread over a split; without such, the longest ones."""
    sizes = np.diff(split.sentences)
    chosen = np.flatnonzero((sizes >= 12) & (sizes <= 40))
    chosen = chosen if len(chosen) else np.flatnonzero(sizes == sizes.max())
    for i in chosen[np.linspace(0, len(chosen) - 1, min(EXAMPLES, len(chosen))).astype(int)]:
        yield split.tokens[split.sentences[i] : split.sentences[i + 1]].tolist()


def as_line(tokenizer: Tokenizer, tokens: list[int]) -> str:
    """Returns tokens as text on one line."""
    return " ".join(tokenizer.decode(tokens).split())
