"""Text to batches: corpora, tokenizers, memory-mapped shards, GPT-1's windows and BERT's sentence pairs."""

from fastlm.data.corpus import DataError, novels, read_documents
from fastlm.data.ngrams import ngram_scores
from fastlm.data.pairs import SentencePairs
from fastlm.data.shards import Shards, prepare
from fastlm.data.tokenizer import Tokenizer, train_bpe, train_wordpiece
from fastlm.data.windows import Windows

__all__ = [
    "DataError",
    "SentencePairs",
    "Shards",
    "Tokenizer",
    "Windows",
    "ngram_scores",
    "novels",
    "prepare",
    "read_documents",
    "train_bpe",
    "train_wordpiece",
]
