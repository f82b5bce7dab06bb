"""The papers' tokenizers, trained with Hugging Face's `tokenizers` and kept in its tokenizer.json.

GPT-1 (Radford et al. 2018, section 4.1): byte-pair encoding of lowercase words, a word's last part marked by "</w>";
as in its released vocabulary a newline is a token of its own, so that paragraphs show. BERT (Devlin et al. 2019,
section 3): uncased WordPiece with [PAD], [UNK], [CLS], [SEP], [MASK]. Both split at white space and punctuation first.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastlm.data.corpus import DataError
from fastlm.files import explain_full_disk, write_bytes

BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_KINDS = {"BPE": "bpe", "WordPiece": "wordpiece"}
_ASCII = sorted(set(string.printable.lower()) - set(string.whitespace))
_USER_CHOSE_CORES = "TOKENIZERS_PARALLELISM" in os.environ
_MOST_CHARACTERS = 1000  # of a corpus; rarer ones become unknown, as in BERT's vocabulary


class Tokenizer:
    """A tokenizer.json in use: text to token ids and back.

    kind: "bpe" or "wordpiece". vocab_size: entries. specials: name to id of BERT's five, empty for "bpe". hash: SHA-256
    of the canonical JSON, by which shards and runs know their tokenizer.
    """

    def __init__(self, text: str, source: str = "tokenizer"):
        try:
            self._tokenizer = _tokenizers().Tokenizer.from_str(text)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # what the library raises for a file that is not its own
            raise DataError(f"{source}: a tokenizer.json of Hugging Face's tokenizers expected ({error})") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        model = json.loads(text)["model"].get("type")
        if model not in _KINDS:
            raise DataError(f"{source}: a BPE or WordPiece tokenizer expected, got {model}")
        self.kind = _KINDS[model]
        self.json = _canonical(json.loads(text))
        self.hash = hashlib.sha256(self.json.encode()).hexdigest()
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.specials = {name: self.id(name) for name in BERT_SPECIALS} if self.kind == "wordpiece" else {}

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer.json, or that of a folder. Raises DataError if it is not one."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            return cls(path.read_text(encoding="utf-8"), str(path))
        except FileNotFoundError:
            raise DataError(f"{path}: no such tokenizer file") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: a tokenizer.json in UTF-8 expected ({error})") from None

    def save(self, path: str | Path) -> None:
        """Write the tokenizer.json, all or nothing."""
        with explain_full_disk(path, "nothing was changed there"):
            write_bytes(Path(path), self.json.encode())

    def id(self, token: str) -> int:
        """The id of one token as the vocabulary spells it. Raises DataError if it is not there."""
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise DataError(
                f"token: {token!r} is not among the {self.vocab_size} entries of this {self.kind} vocabulary"
            )
        return found

    def encode(self, text: str) -> list[int]:
        """The ids of a text; nothing is added, but specials such as [MASK] in it are themselves."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_corpus(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, on all cores; "[MASK]" and the like are ordinary characters there."""
        self._tokenizer.encode_special_tokens = True
        try:
            with _all_cores():
                return [e.ids for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        finally:
            self._tokenizer.encode_special_tokens = False

    def decode(self, ids: Iterable[int]) -> str:
        """Readable text: words joined, punctuation attached; [PAD], [CLS] and [SEP] are left out."""
        unseen = {self.specials.get(name) for name in ("[PAD]", "[CLS]", "[SEP]")}
        return _readable(self._tokenizer.decode([i for i in ids if i not in unseen], skip_special_tokens=False))


load = Tokenizer.load


def train_bpe(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """GPT-1's tokenizer of at most `vocab_size` entries; the same documents give the same tokenizer.

    `documents` is read twice (a list, or what read_documents returns). Entries: <unk>, newline, each character within
    and at the end of a word, merges. The paper's 40,000 merges make 40,478 entries.
    """
    t = _tokenizers()
    untrained = t.Tokenizer(t.models.BPE(unk_token="<unk>", end_of_word_suffix="</w>", fuse_unk=False))
    untrained.decoder = t.decoders.BPEDecoder(suffix="</w>")
    trained = _train(
        untrained, t.trainers.BpeTrainer, documents, vocab_size, ("<unk>", "\n"), "{}</w>", end_of_word_suffix="</w>"
    )
    newline = next(token for token in trained["added_tokens"] if token["content"] == "\n")
    newline["special"] = False  # it is part of the text: encode_corpus sees it too
    return Tokenizer(_canonical(trained))


def train_wordpiece(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """BERT's uncased tokenizer of at most `vocab_size` entries; the same documents give the same tokenizer.

    `documents` is read twice (a list, or what read_documents returns). Entries: the specials ([PAD] is 0), each
    character at the start of and within a word, then merges by frequency. The paper's has 30,522.
    """
    t = _tokenizers()
    untrained = t.Tokenizer(t.models.WordPiece(unk_token="[UNK]", continuing_subword_prefix="##"))
    untrained.decoder = t.decoders.WordPiece(prefix="##", cleanup=False)
    trained = _train(untrained, t.trainers.WordPieceTrainer, documents, vocab_size, BERT_SPECIALS, "##{}")
    return Tokenizer(_canonical(trained))


def _train(
    untrained: Any,
    trainer: Any,
    documents: Iterable[str],
    vocab_size: int,
    specials: tuple[str, ...],
    marked: str,
    **options: Any,
) -> dict[str, Any]:
    """Train on lowercase words and return the tokenizer.json.

    The library numbers the marked characters ("a</w>", "##a") in the order of a hash table, and that order decides
    between merges of equal count. Naming them all beforehand, as specials that are struck from the list afterwards,
    makes training reproducible, and leaves no ASCII text unknown.
    """
    t = _tokenizers()
    if iter(documents) is documents:
        raise TypeError("documents: a list or another iterable that can be read twice expected, got an iterator")
    untrained.normalizer = t.normalizers.BertNormalizer(lowercase=True)
    untrained.pre_tokenizer = t.pre_tokenizers.BertPreTokenizer()
    alphabet = _alphabet(documents, untrained.normalizer, vocab_size // 8)
    named = [*specials, *(form for c in alphabet for form in (c, marked.format(c)))]
    if vocab_size < len(named):
        raise ValueError(f"vocab_size: at least {len(named)} expected (specials and alphabet), got {vocab_size}")
    with _all_cores():
        untrained.train_from_iterator(
            documents,
            trainer(
                vocab_size=vocab_size,
                special_tokens=named,
                initial_alphabet=alphabet,
                limit_alphabet=len(alphabet),
                min_frequency=2,
                show_progress=False,
                **options,
            ),
        )
    trained = json.loads(untrained.to_str())
    trained["added_tokens"] = [token for token in trained["added_tokens"] if token["content"] in specials]
    return trained


def _alphabet(documents: Iterable[str], normalizer: Any, most: int) -> list[str]:
    """ASCII and the corpus's most frequent other characters, normalised: at most `most` (but all of ASCII), sorted."""
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(document)
    normalised: Counter[str] = Counter()
    for character, count in counts.items():
        for part in set(normalizer.normalize_str(character)) - set(string.whitespace):
            normalised[part] += count
    others = sorted((c for c in normalised if c not in _ASCII), key=lambda c: (-normalised[c], c))
    return sorted(_ASCII + others[: max(0, min(most, _MOST_CHARACTERS) - len(_ASCII))])


# Spaces that the split at punctuation put in, taken out again (and one that <unk>, ending no word, lacks).
_JOINS = (
    (re.compile(r"<unk>(?=\w)"), "<unk> "),
    (re.compile(r" *\n *"), "\n"),
    (re.compile(r"(?<=\w) ' (?=(?:s|d|t|m|ll|re|ve)\b)"), "'"),
    (re.compile(r" (?=[.,;:!?)\]}%’”])| (?='(?: |$))"), ""),
    (re.compile(r"(?<=\d), (?=\d{3}\b)"), ","),
    (re.compile(r"(?<=[(\[{$#‘“]) "), ""),
    (re.compile(r" ?([-/–—]) ?"), r"\1"),
    (re.compile(r'" ([^"\n]*?) ?"|_ ([^_\n]*?) ?_'), lambda m: f'"{m[1]}"' if m[2] is None else f"_{m[2]}_"),
)


def _readable(text: str) -> str:
    for pattern, replacement in _JOINS:
        text = pattern.sub(replacement, text)
    return text.strip(" ")


def _canonical(tokenizer: dict[str, Any]) -> str:
    return json.dumps(tokenizer, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _tokenizers() -> Any:
    """The library, imported where it is needed: batches are read without it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        if error.name != "tokenizers":
            raise
        raise ModuleNotFoundError("tokenizers is not installed: pip install fastlm[train]", name=error.name) from None
    return tokenizers


@contextmanager
def _all_cores() -> Iterator[None]:
    """All cores for work on a corpus, unless the user has chosen; outside it one, so that a fork is safe and silent."""
    if _USER_CHOSE_CORES:
        yield
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
