"""Realistic sequence lengths: pairs of neighbouring sentences of the bundled novels, as in fine-tuning.

A length is an estimate of the number of WordPiece tokens. A punctuation mark counts 1, a word of n letters
1 + max(0, n - 3) // 4, and [CLS] and two [SEP] add 3. A batch consists of evenly spaced quantiles of all lengths, so it
is the same in every run.
"""

from __future__ import annotations

import functools
import itertools
import re

from fastlm.data.corpus import novels, read_documents
from fastlm.data.sentences import split_sentences

SENTENCES = 20_000


@functools.cache
def _sorted_lengths() -> list[int]:
    texts = (line for document in read_documents(novels()) for line in document.split("\n"))
    sentences = itertools.islice((s for line in texts for s in split_sentences(line)), SENTENCES)
    return sorted(a + b + 3 for a, b in itertools.pairwise(map(_estimated_tokens, sentences)))


def _estimated_tokens(sentence: str) -> int:
    return sum(1 + max(0, len(word) - 3) // 4 for word in re.findall(r"\w+|[^\w\s]", sentence))


def lengths(batch: int, longest: int) -> list[int]:
    """Returns `batch` lengths, cut to `longest`, in an order that mixes long and short ones."""
    every = _sorted_lengths()
    quantiles = [min(longest, every[round((i + 0.5) / batch * len(every))]) for i in range(batch)]
    step = next(s for s in range(batch * 5 // 8, 2 * batch + 1) if _coprime(s, batch))
    return [quantiles[i * step % batch] for i in range(batch)]


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1
