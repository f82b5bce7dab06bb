"""The vocabularies beside the original checkpoints, as tokenizers: GPT-1's encoder and merges, BERT's vocab.txt.

GPT-1's ids are those of transformers' OpenAIGPTTokenizer, or with text_steps="original" those of OpenAI's own code: see
tests/test_transformers_tokenizers.py for how they differ. Google's code keeps the case of a cased vocabulary if it is
told so; here a vocabulary with the entries "A" to "Z" is cased. It splits words of up to 200 characters.
"""

from __future__ import annotations

import json
import string
from pathlib import Path

from fastlm.data import original_text
from fastlm.data.corpus import DataError
from fastlm.data.tokenizer import MAX_WORD, Tokenizer
from fastlm.files import write_bytes
from fastlm.integrations.transformers.tokenizer_files import bpe_json, read_bpe, read_vocabulary, wordpiece_json

ENCODER, MERGES, VOCABULARY = "encoder_bpe_40000.json", "vocab_40000.bpe", "vocab.txt"


TEXT_STEPS = ("transformers", "original")


def read_openai_tokenizer(folder: str | Path, text_steps: str = "transformers") -> Tokenizer | None:
    """Returns GPT-1's tokenizer; None for a folder without an encoder.

    text_steps: whose steps come before the byte-pair encoding: one of TEXT_STEPS. The saved tokenizer records it.

    Raises ValueError for another name, and DataError, naming the file, for a damaged one.
    """
    if text_steps not in TEXT_STEPS:
        raise ValueError(f"text_steps: one of {', '.join(TEXT_STEPS)} expected, got {text_steps!r}")
    path = Path(folder) / ENCODER
    if not path.is_file():
        return None
    content = bpe_json(read_bpe(path, MERGES), [])
    if text_steps == "original":
        content |= {"normalizer": original_text.NORMALIZER, "pre_tokenizer": original_text.PRE_TOKENIZER}
    return _tokenizer(content, path)


def read_google_tokenizer(folder: str | Path) -> Tokenizer | None:
    """Returns BERT's tokenizer; None for a folder without vocab.txt. Raises DataError for another vocabulary."""
    path = Path(folder) / VOCABULARY
    if not path.is_file():
        return None
    vocabulary = read_vocabulary(path)
    content = wordpiece_json(vocabulary, {"do_lower_case": not vocabulary.keys() >= {*string.ascii_uppercase}}, [])
    content["model"]["max_input_chars_per_word"] = MAX_WORD
    return _tokenizer(content, path)


def write_openai_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes GPT-1's two files. Raises OSError, or ValueError for a tokenizer that is not all in them."""
    model = _model(tokenizer, "bpe", "OpenAI's")
    pairs = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    write_bytes(Path(folder) / ENCODER, json.dumps(model["vocab"]).encode())
    write_bytes(Path(folder) / MERGES, "".join(f"{line}\n" for line in ("#version: 0.2", *pairs)).encode())


def write_google_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes vocab.txt. Raises OSError, or ValueError for a tokenizer that is not all in it."""
    vocabulary = _model(tokenizer, "wordpiece", "Google's")["vocab"]
    entry_of = {number: entry for entry, number in vocabulary.items()}
    lines = (entry_of.get(number, "") for number in range(max(entry_of) + 1))
    write_bytes(Path(folder) / VOCABULARY, "".join(f"{line}\n" for line in lines).encode())


def _model(tokenizer: Tokenizer, kind: str, whose: str) -> dict:
    if tokenizer.kind != kind:
        raise ValueError(f"tokenizer: one of {kind} expected for {whose} format, got {tokenizer.kind}")
    model = json.loads(tokenizer.json)["model"]
    if tokenizer.vocab_size != len(model["vocab"]):
        raise ValueError(
            f"tokenizer: {whose} format holds the vocabulary alone, and this tokenizer has "
            f"{tokenizer.vocab_size - len(model['vocab'])} added tokens"
        )
    return model


def _tokenizer(content: dict, source: Path) -> Tokenizer:
    content |= {"post_processor": None, "truncation": None, "padding": None}
    try:
        return Tokenizer(json.dumps(content, ensure_ascii=False), str(source))
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
