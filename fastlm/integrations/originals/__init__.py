"""Reads and writes the checkpoints that OpenAI's and Google's own code wrote: GPT-1 and BERT, without TensorFlow."""

from fastlm.integrations.originals.bert import read_google, write_google
from fastlm.integrations.originals.gpt1 import read_openai, write_openai
from fastlm.integrations.originals.tokenizers import (
    TEXT_STEPS,
    read_google_tokenizer,
    read_openai_tokenizer,
    write_google_tokenizer,
    write_openai_tokenizer,
)

__all__ = [
    "TEXT_STEPS",
    "read_google",
    "read_google_tokenizer",
    "read_openai",
    "read_openai_tokenizer",
    "write_google",
    "write_google_tokenizer",
    "write_openai",
    "write_openai_tokenizer",
]
