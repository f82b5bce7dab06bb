"""From text to batches: corpora, tokenizers, memory-mapped shards, GPT-1's windows and BERT's sentence pairs."""

from typing import TYPE_CHECKING

from fastlm._lazy import attach

if TYPE_CHECKING:
    from fastlm.data.config import CorpusConfig
    from fastlm.data.corpus import DataError, novels, read_documents
    from fastlm.data.pairs import SentencePairs
    from fastlm.data.shards import Shards, prepare
    from fastlm.data.tokenizer import Tokenizer, train_bpe, train_wordpiece
    from fastlm.data.windows import Windows

__all__ = [
    "CorpusConfig",
    "DataError",
    "SentencePairs",
    "Shards",
    "Tokenizer",
    "Windows",
    "novels",
    "prepare",
    "read_documents",
    "train_bpe",
    "train_wordpiece",
]

# Reading text imports no numpy, and making shards imports no torch.
_NAMES = {
    "config": ("CorpusConfig",),
    "corpus": ("DataError", "novels", "read_documents"),
    "pairs": ("SentencePairs",),
    "shards": ("Shards", "prepare"),
    "tokenizer": ("Tokenizer", "train_bpe", "train_wordpiece"),
    "windows": ("Windows",),
}
__getattr__, __dir__ = attach(__name__, _NAMES)
