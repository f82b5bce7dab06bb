"""The papers' tokenizers, trained with Hugging Face's `tokenizers` and kept in its tokenizer.json.

GPT-1 (Radford et al. 2018, section 4.1): byte-pair encoding of lowercase words, a word's last part marked by "</w>";
a newline is a token of its own, as in the released vocabulary, so that a model sees paragraphs.
BERT (Devlin et al. 2019, section 3): uncased WordPiece with [PAD], [UNK], [CLS], [SEP], [MASK].
Both first split at white space and punctuation. A tokenizer of OpenAI's own vocabulary may take the steps of OpenAI's
code instead (original_text.py).
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

from fastlm.data import original_text
from fastlm.data.corpus import DataError, Documents, unwrap
from fastlm.files import explain_full_disk, write_bytes

BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_KINDS = {"BPE": "bpe", "WordPiece": "wordpiece"}
_ASCII = sorted(set(string.printable.lower()) - set(string.whitespace))
_USER_CHOSE_CORES = "TOKENIZERS_PARALLELISM" in os.environ
_MAX_ALPHABET = 1000  # characters with entries of their own; rarer ones are unknown, as in BERT's vocabulary
_MAX_UNKNOWN = 0.001  # more characters get entries while the unknown ones exceed this fraction of the corpus
MAX_WORD = 200  # characters; BERT's code replaces a longer word by [UNK]
_EXPANSION = 4  # Unicode's canonical decomposition makes at most four characters of one; each merge removes one
_TOO_LONG = re.compile(rf"(?<![a-zA-Z0-9])[a-zA-Z0-9]{{{MAX_WORD + 1}}}[a-zA-Z0-9]*")  # left out of training


class Tokenizer:
    """Converts text to token ids and back, by a tokenizer.json.

    kind: "bpe" or "wordpiece". text_steps: "original" if a text takes the steps of OpenAI's code first, else "own",
    those of the tokenizer.json; its pre_tokenizer says which. vocab_size: entries. specials: the ids of BERT's five
    special tokens by name, empty for "bpe". hash: SHA-256 of the canonical JSON; shards and runs identify their
    tokenizer by it. unknown: the id of "<unk>" or "[UNK]", None if a foreign vocabulary has no such entry.
    """

    def __init__(self, text: str, source: str = "tokenizer"):
        try:
            self._tokenizer = _tokenizers().Tokenizer.from_str(text)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # the library raises no narrower class for a foreign file
            raise DataError(f"{source}: a tokenizer.json of Hugging Face's tokenizers expected ({error})") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        model = json.loads(text)["model"]
        if model.get("type") not in _KINDS:
            raise DataError(f"{source}: a BPE or WordPiece tokenizer expected, got {model.get('type')}")
        self.kind = _KINDS[model["type"]]
        is_original = json.loads(text).get("pre_tokenizer") == original_text.PRE_TOKENIZER
        self.text_steps = "original" if is_original else "own"
        self.json = _canonical(json.loads(text))
        self.hash = hashlib.sha256(self.json.encode()).hexdigest()
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.specials = {name: self.id(name) for name in BERT_SPECIALS} if self.kind == "wordpiece" else {}
        self.unknown: int | None = self._tokenizer.token_to_id(model.get("unk_token") or "")
        self._known: dict[str, bool] = {}

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Reads a tokenizer.json, given its path or its folder's. Raises DataError if it is not one."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            return cls(path.read_text(encoding="utf-8"), str(path))
        except FileNotFoundError:
            raise DataError(f"{path}: no such tokenizer file") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: a tokenizer.json in UTF-8 expected ({error})") from None

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer.json atomically."""
        with explain_full_disk(path, "nothing was changed there"):
            write_bytes(Path(path), self.json.encode())

    def id(self, token: str) -> int:
        """Returns the id of a token, spelled as in the vocabulary. Raises DataError if it is not there."""
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise DataError(
                f"token: {token!r} is not among the {self.vocab_size} entries of this {self.kind} vocabulary"
            )
        return found

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text. Adds no special tokens, but reads those that are in the text, such as [MASK].

        Raises DataError for a lone surrogate, into which Python decodes invalid bytes of a command line.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = ord(text[error.start])
            byte = f" (the byte 0x{found - 0xDC00:02x} of a command line)" if 0xDC80 <= found <= 0xDCFF else ""
            raise DataError(
                f"text: valid Unicode expected, got the lone surrogate \\u{found:04x} at character {error.start}{byte}"
            ) from None
        return self._tokenizer.encode(self._prepared(text), add_special_tokens=False).ids

    def encode_corpus(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of each text, using all cores. Here "[MASK]" and the like are ordinary characters."""
        with self._plain_text():
            prepared = list(map(self._prepared, texts))
            return [e.ids for e in self._tokenizer.encode_batch_fast(prepared, add_special_tokens=False)]

    def encode_with_offsets(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Returns the ids of each text as `encode_corpus` does, and per id its characters [start, end) of the text.

        Raises DataError for a tokenizer whose text steps move the characters.
        """
        if self.text_steps == "original":
            raise DataError(
                "tokenizer: OpenAI's text steps move the characters, so that no spans of the text are known"
            )
        with self._plain_text():
            return [(e.ids, e.offsets) for e in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def with_specials(self, names: Iterable[str]) -> Tokenizer:
        """Returns this tokenizer with special tokens after its entries. It keeps the ids of those that it has."""
        content = json.loads(self.json)
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        new = [name for name in names if self._tokenizer.token_to_id(name) is None]
        for number, name in enumerate(new, start=self.vocab_size):
            content["added_tokens"].append({"id": number, "content": name, **flags, "special": True})
        return Tokenizer(_canonical(content))

    def _prepared(self, text: str) -> str:
        return original_text.words_of(text) if self.text_steps == "original" else text

    @contextmanager
    def _plain_text(self) -> Iterator[None]:
        """Reads "[MASK]" and the like as ordinary characters, and uses all cores."""
        self._tokenizer.encode_special_tokens = True
        try:
            with _all_cores():
                yield
        finally:
            self._tokenizer.encode_special_tokens = False

    def count_unknown(self, text: str) -> int:
        """Returns the number of characters of a text that have no entry, also not in lowercase and without accents."""
        return sum(count for character, count in Counter(text).items() if not self._knows(character))

    def _knows(self, character: str) -> bool:
        """Returns whether everything that a character is normalised to has an entry, alone or within a word."""
        if character not in self._known:
            normalizer = self._tokenizer.normalizer
            parts = normalizer.normalize_str(character).split() if normalizer else [character]
            forms = [(part, f"{part}</w>", f"##{part}") for whole in parts for part in whole]
            entries = [[self._tokenizer.token_to_id(form) for form in several] for several in forms]
            self._known[character] = all(any(i is not None for i in several) for several in entries)
        return self._known[character]

    def decode(self, ids: Iterable[int], *, unfinished: bool = False) -> str:
        """Returns readable text: subwords joined, punctuation attached, without [PAD], [CLS] and [SEP].

        unfinished: more ids will follow; returns only the beginning of the text that stays the same with any ids.
        """
        unseen = {self.specials.get(name) for name in ("[PAD]", "[CLS]", "[SEP]")}
        text = self._tokenizer.decode([i for i in ids if i not in unseen], skip_special_tokens=False)
        return _readable(text, unfinished)


load = Tokenizer.load


def train_bpe(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains GPT-1's tokenizer of at most `vocab_size` entries; the same documents give the same tokenizer.

    `documents` is read twice (a list, or the result of read_documents). The entries are <unk>, newline, each character
    within a word and at its end, and the merges. The paper's 40,000 merges give 40,478 entries.
    """
    t = _tokenizers()
    untrained = t.Tokenizer(t.models.BPE(unk_token="<unk>", end_of_word_suffix="</w>", fuse_unk=False))
    untrained.decoder = t.decoders.BPEDecoder(suffix="</w>")
    trained = _train(
        untrained, t.trainers.BpeTrainer, documents, vocab_size, ("<unk>", "\n"), "{}</w>", end_of_word_suffix="</w>"
    )
    newline = next(token for token in trained["added_tokens"] if token["content"] == "\n")
    newline["special"] = False  # encode_corpus has to recognise it too
    return Tokenizer(_canonical(trained))


def train_wordpiece(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains BERT's uncased tokenizer of at most `vocab_size` entries; the same documents give the same tokenizer.

    `documents` is read twice (a list, or the result of read_documents). The entries are the special tokens ([PAD] is
    0), each character at the start of a word and within it, and merges by frequency. The paper's has 30,522 entries.
    """
    t = _tokenizers()
    untrained = t.Tokenizer(
        t.models.WordPiece(unk_token="[UNK]", continuing_subword_prefix="##", max_input_chars_per_word=MAX_WORD)
    )
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
    """Trains on lowercase words and returns the content of tokenizer.json.

    The library gives the marked characters ("a</w>", "##a") ids in the order of a hash table, and merges of equal count
    are chosen by id. To make training reproducible, all characters are declared as special tokens first, and these
    declarations are removed afterwards. This also puts all ASCII characters into the vocabulary.
    """
    t = _tokenizers()
    if iter(documents) is documents:
        raise TypeError("documents: a list or another iterable that can be read twice expected, got an iterator")
    untrained.normalizer = t.normalizers.BertNormalizer(lowercase=True)
    untrained.pre_tokenizer = t.pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in _texts(documents):
        counts.update(text)
    alphabet = _alphabet(counts, untrained.normalizer, vocab_size)
    named = [*specials, *(form for c in alphabet for form in (c, marked.format(c)))]
    if vocab_size < len(named):
        raise ValueError(f"vocab_size: at least {len(named)} expected (specials and alphabet), got {vocab_size}")
    with _all_cores():
        untrained.train_from_iterator(
            (_TOO_LONG.sub(" ", text) for text in _texts(documents)),
            trainer(
                vocab_size=min(vocab_size, len(named) + _EXPANSION * counts.total()),  # it allocates so many entries
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


def _texts(documents: Iterable[str]) -> Iterator[str]:
    """Yields the documents in fragments of bounded size, cut between words."""
    streams = documents.streams() if isinstance(documents, Documents) else map(unwrap, documents)
    return (text for fragments in streams for text, _ in fragments)


def _alphabet(counts: Counter[str], normalizer: Any, vocab_size: int) -> list[str]:
    """Returns all of ASCII and the most frequent other characters of a corpus, normalised and sorted.

    counts: how often the corpus has each character. Each character takes two entries. All together take at most a
    quarter of the vocabulary, or up to a half as long as more than _MAX_UNKNOWN of the corpus would be unknown.
    """
    normalised: Counter[str] = Counter()
    for character, count in counts.items():
        for part in set(normalizer.normalize_str(character)) - set(string.whitespace):
            normalised[part] += count
    others = sorted((c for c in normalised if c not in _ASCII), key=lambda c: (-normalised[c], c))
    taken = max(0, min(vocab_size // 8, _MAX_ALPHABET) - len(_ASCII))
    unknown = sum(normalised[c] for c in others[taken:])
    for character in others[taken : max(taken, vocab_size // 4 - len(_ASCII))]:
        if unknown <= _MAX_UNKNOWN * normalised.total():
            break
        unknown -= normalised[character]
        taken += 1
    return sorted(_ASCII + others[:taken])


# These remove the spaces that the split at punctuation inserted; the first adds the space that <unk> lacks.
_JOINS = (
    (re.compile(r"<unk>(?=\w)"), "<unk> "),
    (re.compile(r" *\n *"), "\n"),
    (re.compile(r"(?<=\w) ' (?=(?:s|d|t|m|ll|re|ve)\b)"), "'"),
    (re.compile(r" (?=[.,;:!?)\]}%’”])| (?='(?:\s|$))"), ""),
    (re.compile(r"(?<=\d), (?=\d{3}\b)"), ","),
    (re.compile(r"(?<=[(\[{$#‘“]) "), ""),
    (re.compile(r" ?([-/–—]) ?"), r"\1"),
)
_PAIRS = re.compile(r'" ([^"\n]*?) ?"|_ ([^_\n]*?) ?_')  # quotations, and words in italics


def _readable(text: str, unfinished: bool = False) -> str:
    for pattern, replacement in _JOINS:
        text = pattern.sub(replacement, text)
    if unfinished:
        text = text[: _settled(text)]
    return _PAIRS.sub(lambda m: f'"{m[1]}"' if m[2] is None else f"_{m[2]}_", text).strip(" ")


def _settled(text: str) -> int:
    """Returns how many characters of a text, before _PAIRS, stay the same whatever follows.

    These are whole words, without the last one. A mark without a partner in the last line may get one, which changes
    all after it.
    """
    unpaired = _PAIRS.sub(lambda pair: "x" * len(pair[0]), text)
    mark = re.search('["_]', unpaired[unpaired.rfind("\n") + 1 :])
    end = len(text) if mark is None else unpaired.rfind("\n") + 1 + mark.start()
    return max(unpaired.rfind(" ", 0, end), unpaired.rfind("\n", 0, end), 0)


def _canonical(tokenizer: dict[str, Any]) -> str:
    return json.dumps(tokenizer, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _tokenizers() -> Any:
    """Imports the library only when it is needed: reading batches does not need it."""
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
    """Lets the library use all cores, unless the user chose. Otherwise it uses one core, so that forks are safe."""
    if _USER_CHOSE_CORES:
        yield
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
