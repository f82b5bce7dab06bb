"""Small corpora, tokenizers and shards for the tests of fastlm.data and of the code built on it."""

from __future__ import annotations

from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
from hypothesis import settings

from fastlm.data import Tokenizer, novels, read_documents, train_bpe, train_wordpiece
from fastlm.data.shards import Split

SPECIALS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
FIRST = 5  # smaller ids are special tokens

no_deadline = settings(deadline=None)  # machines that run tests are busy


@cache
def chapters(count: int = 12) -> list[str]:
    """Returns the first chapters of the novels."""
    return list(islice(read_documents(novels()), count))


@cache
def tokenizer(kind: str) -> Tokenizer:
    return {"bpe": train_bpe, "wordpiece": train_wordpiece}[kind](chapters(), 600)


class InMemory:
    """Stands in for Shards. Token i of the text is FIRST + i, so that a batch shows which text it was made from."""

    path = Path("memory")
    kind = "wordpiece"
    specials = SPECIALS

    def __init__(self, *documents: list[int]):
        """documents: for each document, the sizes of its sentences in tokens."""
        sizes = np.array([size for document in documents for size in document], np.int64)
        self.size = int(sizes.sum())
        self.vocab_size = FIRST + self.size
        self.sentences = np.concatenate(([0], np.cumsum(sizes)))
        self.documents = np.concatenate(([0], np.cumsum([len(document) for document in documents])))
        tokens = np.arange(FIRST, FIRST + self.size, dtype=np.uint32)
        self._split = Split("train", tokens, self.sentences, self.documents, self.size)

    def split(self, name: str) -> Split:
        assert name == "train"
        return self._split

    def document_of(self, token: int) -> int:
        """Returns the number of the document that holds a token."""
        return int(np.searchsorted(self.sentences[self.documents], token - FIRST, side="right")) - 1
