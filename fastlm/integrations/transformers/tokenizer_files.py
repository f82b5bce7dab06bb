"""Reads and writes transformers' tokenizer files, so that its AutoTokenizer gives the ids that our Tokenizer gives.

Written: tokenizer.json, which has all; vocab.txt, or vocab.json and merges.txt, for other programs;
tokenizer_config.json and special_tokens_map.json. AutoTokenizer reads tokenizer.json as it stands, since its class is
given as PreTrainedTokenizerFast. The classes BertTokenizer and OpenAIGPTTokenizer would take only the vocabulary from
it. They differ from our trained tokenizers:

    BertTokenizer        a word of 101 to 200 characters is [UNK]; ours splits it, as BERT's code does
    OpenAIGPTTokenizer   a newline is white space; ours is the token "\\n", as in GPT-1's vocabulary

Read: the same files, as AutoTokenizer of transformers 5 reads them. For the two classes it takes the vocabulary from
tokenizer.json or the other files, and the treatment of text from tokenizer_config.json. GPT-1's own code treats text
otherwise than OpenAIGPTTokenizer, whose ids we give: see tests/test_transformers_tokenizers.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastlm.data.corpus import DataError
from fastlm.data.inputs import GPT1_SPECIALS
from fastlm.data.tokenizer import BERT_SPECIALS, Tokenizer
from fastlm.files import write_bytes, write_json

TOKENIZER, CONFIG, SPECIALS = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
_BERT_CLASSES = ("BertTokenizer", "BertTokenizerFast")
_GPT1_CLASSES = ("OpenAIGPTTokenizer", "OpenAIGPTTokenizerFast")
_GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
_CLASS_OF = {"bert": "BertTokenizer", "openai-gpt": "OpenAIGPTTokenizer"}  # if no file names a class
_VOCABULARY_OF = dict.fromkeys(_BERT_CLASSES, "vocab.txt") | dict.fromkeys(_GPT1_CLASSES, "vocab.json")
_PLAIN = {"content": "", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
_NAMES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


def read_tokenizer(folder: str | Path, model_type: str) -> Tokenizer | None:
    """Returns the tokenizer of a folder, or None if there is none. model_type: "bert" or "openai-gpt".

    Raises DataError, naming the file, for a damaged file or a class of tokenizers that fastlm does not have.
    """
    folder = Path(folder)
    options = _read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    name = options.get("tokenizer_class") or _CLASS_OF[model_type]
    if name not in _BERT_CLASSES + _GPT1_CLASSES + _GENERIC_CLASSES:
        raise DataError(f"{folder / CONFIG}: a BertTokenizer or an OpenAIGPTTokenizer expected, got {name!r}")
    source = folder / TOKENIZER
    content = _read_json(source) if source.is_file() else None
    if content is None:
        source = folder / _VOCABULARY_OF.get(name, TOKENIZER)
        if not source.is_file():
            return None
    if name in _BERT_CLASSES:
        vocabulary = read_vocabulary(source) if content is None else _model(content, source)["vocab"]
        content = wordpiece_json(vocabulary, options, _added(content, options))
    elif name in _GPT1_CLASSES:
        model = read_bpe(source) if content is None else _model(content, source)
        content = bpe_json(model, _added(content, options))
    content |= {"post_processor": None, "truncation": None, "padding": None}  # our Tokenizer uses none of them
    return Tokenizer(json.dumps(content, ensure_ascii=False), str(source))


def write_tokenizer(tokenizer: Tokenizer, folder: str | Path, context: int) -> None:
    """Writes transformers' files of a tokenizer, each atomically. context: the model's longest sequence.

    BERT's [CLS] and [SEP], and the start, delimiter and extract tokens of a fine-tuned GPT-1, are put around a text or
    a pair of texts by AutoTokenizer, as in fastlm's inputs. Raises OSError.
    """
    folder = Path(folder)
    content = json.loads(tokenizer.json)
    model = content["model"]
    around = _surrounding_tokens(tokenizer)
    if around:
        content["post_processor"] = _template(tokenizer, *around)
    write_bytes(folder / TOKENIZER, json.dumps(content, ensure_ascii=False, indent=1).encode())
    if tokenizer.kind == "wordpiece":
        names = _NAMES
        text = content.get("normalizer") or {}
        options = {
            "do_lower_case": text.get("lowercase", True),
            "strip_accents": text.get("strip_accents"),
            "tokenize_chinese_chars": text.get("handle_chinese_chars", True),
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        }
        entry_of = {number: entry for entry, number in model["vocab"].items()}
        lines = (entry_of.get(number, "") for number in range(max(entry_of) + 1))
        write_bytes(folder / "vocab.txt", "".join(f"{line}\n" for line in lines).encode())
    else:
        names = {"unk_token": model["unk_token"]} if model.get("unk_token") else {}
        if around:
            names |= {"bos_token": around[0], "sep_token": around[1], "cls_token": around[2], "pad_token": around[0]}
        options = {"model_input_names": ["input_ids", "attention_mask"]}  # token_type_ids would be embedded as tokens
        pairs = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
        write_bytes(folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False).encode())
        write_bytes(folder / "merges.txt", "".join(f"{line}\n" for line in ("#version: 0.2", *pairs)).encode())
    write_json(folder / SPECIALS, names)
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, **options, **names}
    write_json(folder / CONFIG, named | {"clean_up_tokenization_spaces": False})


def padding_id(tokenizer: Tokenizer) -> int | None:
    """Returns the id that transformers pads with: [PAD], or the start token of a fine-tuned GPT-1; None without one.

    transformers' OpenAIGPTForSequenceClassification reads the last token that is not padding.
    """
    if tokenizer.kind == "wordpiece":
        return tokenizer.id("[PAD]")
    around = _surrounding_tokens(tokenizer)
    return tokenizer.id(around[0]) if around else None


def _surrounding_tokens(tokenizer: Tokenizer) -> tuple[str, str, str] | None:
    """Returns the tokens before, between and after texts; None for a tokenizer without such."""
    if tokenizer.kind == "wordpiece":
        return "[CLS]", "[SEP]", "[SEP]"
    added = {token["content"] for token in json.loads(tokenizer.json)["added_tokens"]}
    return GPT1_SPECIALS if added.issuperset(GPT1_SPECIALS) else None


def _template(tokenizer: Tokenizer, first: str, between: str, last: str) -> dict[str, Any]:
    """Returns a post-processor of the library: first A last, or first A between B last, B with segment 1."""

    def special(name: str, segment: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": segment}}

    a, b = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    ids = {name: {"id": name, "ids": [tokenizer.id(name)], "tokens": [name]} for name in {first, between, last}}
    return {
        "type": "TemplateProcessing",
        "single": [special(first, 0), a, special(last, 0)],
        "pair": [special(first, 0), a, special(between, 0), b, special(last, 1)],
        "special_tokens": ids,
    }


def wordpiece_json(vocabulary: Any, options: dict[str, Any], added: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the content of tokenizer.json for a BertTokenizer with a vocabulary, options and added tokens."""
    return {
        "version": "1.0",
        "added_tokens": _with_specials(added, BERT_SPECIALS, vocabulary),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": options.get("tokenize_chinese_chars", True),
            "strip_accents": options.get("strip_accents"),
            "lowercase": options.get("do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }


def bpe_json(model: dict[str, Any], added: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the content of tokenizer.json for an OpenAIGPTTokenizer with a vocabulary, merges and added tokens."""
    return {
        "version": "1.0",
        "added_tokens": _with_specials(added, ("<unk>",), model["vocab"]),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": model["vocab"],
            "merges": model["merges"],
        },
    }


def _with_specials(
    added: list[dict[str, Any]], names: tuple[str, ...], vocabulary: dict[str, int]
) -> list[dict[str, Any]]:
    """Returns added tokens, by id, with the special tokens of the vocabulary."""
    special = {"normalized": False, "special": True}
    by_id = {vocabulary[name]: _PLAIN | {"content": name} | special for name in names if name in vocabulary}
    by_id |= {token["id"]: token for token in added}
    return [{**token, "id": number} for number, token in sorted(by_id.items())]


def _added(content: dict[str, Any] | None, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the added tokens of tokenizer_config.json or, as in transformers, else those of tokenizer.json."""
    if "added_tokens_decoder" not in options:
        return (content or {}).get("added_tokens", [])
    listed = {int(number): token for number, token in options["added_tokens_decoder"].items()}
    return [{name: token.get(name, _PLAIN[name]) for name in _PLAIN} | {"id": i} for i, token in listed.items()]


def _model(content: dict[str, Any], source: Path) -> dict[str, Any]:
    model = content.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise DataError(f"{source}: a tokenizer.json with a vocabulary expected")
    return model


def read_vocabulary(path: Path) -> dict[str, int]:
    """Reads vocab.txt: an entry per line. Of equal lines the last one counts, as in transformers."""
    with path.open(encoding="utf-8", newline="\n") as lines:
        return {line.rstrip("\n"): number for number, line in enumerate(lines)}


def read_bpe(path: Path, merges_file: str = "merges.txt") -> dict[str, Any]:
    """Reads vocab.json, and merges.txt beside it: two parts per line, after a line with the version."""
    name, vocabulary, path = path.name, _read_json(path), path.with_name(merges_file)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; it goes with {name}") from None
    merges = [line.split(" ") for line in lines[lines[0].startswith("#version") :] if line]
    for number, merge in enumerate(merges):
        if len(merge) != 2:
            raise DataError(f"{path}: two parts per line expected, got {' '.join(merge)!r} as merge {number}")
    return {"vocab": vocabulary, "merges": merges}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: a JSON object expected, got a {type(content).__name__}")
    return content
