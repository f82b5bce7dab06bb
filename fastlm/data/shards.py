"""Shards: a corpus that is tokenised once, in files that are memory-mapped.

A folder of shards holds, for each split ("train", "validation"), little-endian and without a header,

    SPLIT.tokens      uint16 (uint32 if the vocabulary is above 65,536): the text as one stream of ids
    SPLIT.sentences   int64 (sentences + 1): where each sentence starts among the tokens, and the end
    SPLIT.documents   int64 (documents + 1): where each document starts among the sentences, and the end

and manifest.json, which gives the sizes and the source of these files.

The validation split consists of whole documents, those with the smallest hashes, until they hold `validation_fraction`
of the bytes. So the split is spread over the corpus, and all copies of a document are in the same split. If the corpus
is one document, its last sentences are held out.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastlm.data.corpus import DataError, Documents, Fragment, read_documents
from fastlm.data.sentences import sentences
from fastlm.data.tokenizer import Tokenizer
from fastlm.files import explain_full_disk, new_folder

FORMAT = 2  # increased when `prepare` gives another result for the same files; format 2 also counts unknown text
SPLITS = ("train", "validation")
MAX_UNKNOWN = 0.01  # fraction of unknown characters or tokens above which the user is warned
PARTS = ("tokens", "sentences", "documents")
_BATCH, _BATCH_CHARACTERS = 4096, 1 << 20  # sentences tokenised at a time, and the characters in them
_OFFSET = np.dtype("<i8")


@dataclass(frozen=True)
class Split:
    """Holds a split, memory-mapped read-only: tokens (tokens,), sentences (sentences + 1,), documents (documents + 1,).

    bytes: UTF-8 bytes of its text, with the white space between sentences and a newline after each document.
    """

    name: str
    tokens: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray
    bytes: int


class Shards:
    """Gives access to an open folder of shards.

    kind ("bpe" or "wordpiece"), vocab_size, specials, tokenizer_hash: facts of the tokenizer. manifest: the content of
    manifest.json. warnings: sentences about the text that a user should read before training.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path = path
        self.manifest = manifest
        made_with = manifest["tokenizer"]
        self.kind: str = made_with["kind"]
        self.vocab_size: int = made_with["vocab_size"]
        self.specials: dict[str, int] = made_with["specials"]
        self.tokenizer_hash: str = made_with["hash"]
        self._splits = {name: self._map(name) for name in SPLITS}
        self.warnings = self._unknown_warnings()

    @classmethod
    def open(cls, path: str | Path, tokenizer: Tokenizer | None = None) -> Shards:
        """Opens the shards of a folder. Checks the size of each file and, if it is given, the tokenizer.

        Raises DataError if the folder holds no shards, a file is missing or cut short, or the tokenizer is another one.
        """
        path = Path(path)
        try:
            shards = cls(path, _read_manifest(path))
        except (KeyError, TypeError) as error:
            raise DataError(f"{path / 'manifest.json'}: not the manifest of shards ({error!r})") from None
        if tokenizer is not None and tokenizer.hash != shards.tokenizer_hash:
            raise DataError(
                f"tokenizer: {path} was made with the {shards.kind} tokenizer {shards.tokenizer_hash[:12]} "
                f"({shards.vocab_size} entries), got the {tokenizer.kind} tokenizer {tokenizer.hash[:12]} "
                f"({tokenizer.vocab_size} entries)"
            )
        return shards

    def split(self, name: str) -> Split:
        """Returns the split "train" or "validation"."""
        if name not in self._splits:
            raise ValueError(f"split: one of {', '.join(SPLITS)} expected, got {name!r}")
        return self._splits[name]

    def _unknown_warnings(self) -> list[str]:
        """Returns one warning if more than MAX_UNKNOWN of the text is unknown to the tokenizer, else none."""
        characters, tokens = self._unknown_fraction("characters"), self._unknown_fraction("tokens")
        if max(characters, tokens) <= MAX_UNKNOWN:
            return []
        return [
            f"{self.path}: {characters:.1%} of the text's characters are unknown to its tokenizer of {self.vocab_size} "
            f"entries, and {tokens:.1%} of the tokens are its unknown one; a model learns nothing from those: train a "
            "tokenizer on this text, with more entries (--vocab-size)"
        ]

    def _unknown_fraction(self, kind: str) -> float:
        """Returns the unknown fraction of the "characters" or "tokens" of both splits."""
        splits = self.manifest["splits"].values()
        return sum(split[f"unknown_{kind}"] for split in splits) / sum(split[kind] for split in splits)

    def _map(self, name: str) -> Split:
        counts = self.manifest["splits"][name]
        token = np.dtype(self.manifest["dtype"])
        tokens = self._map_file(f"{name}.tokens", token, counts["tokens"])
        sentences = self._map_file(f"{name}.sentences", _OFFSET, counts["sentences"] + 1)
        documents = self._map_file(f"{name}.documents", _OFFSET, counts["documents"] + 1)
        if sentences[-1] != len(tokens) or documents[-1] != counts["sentences"]:
            raise DataError(
                f"{self.path}: the offsets of {name} do not end at its {len(tokens)} tokens; prepare it again"
            )
        return Split(name, tokens, sentences, documents, counts["bytes"])

    def _map_file(self, name: str, dtype: np.dtype, count: int) -> np.ndarray:
        file = self.path / name
        if not file.is_file():
            raise DataError(f"{file}: no such file, though manifest.json names it; prepare the shards again")
        size = file.stat().st_size
        if size != count * dtype.itemsize:
            raise DataError(f"{file}: {count * dtype.itemsize} bytes expected, got {size}; prepare the shards again")
        return np.asarray(np.memmap(file, dtype, mode="r"))


def prepare(
    paths: str | Path | Iterable[str | Path],
    out: str | Path,
    tokenizer: Tokenizer,
    *,
    validation_fraction: float = 0.05,
    document: str = "blank-line",
) -> Shards:
    """Tokenises text files into the new folder `out`, and opens it.

    The folder is written atomically. A folder that exists and was made from the same text, tokenizer and options is
    opened as it is. The text is read twice (three times if it is one document). Memory holds the tokens of a few
    thousand sentences, one line of a .jsonl file, and 16 bytes per document. `document`: see corpus.py. Only one
    process at a time may prepare a folder.

    Raises DataError for text that cannot be read or split, and for an `out` that holds anything else; OSError for a
    full disk.
    """
    out = Path(out)
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction: above 0 and below 1 expected, got {validation_fraction}")
    documents = read_documents(paths, document)
    survey = _Survey(documents, validation_fraction)
    source = {"text": survey.hash, "tokenizer": tokenizer.hash, "validation_fraction": validation_fraction}
    if out.exists() and not out.is_dir():
        raise DataError(f"out: a folder to make expected, but {out} is a file")
    if out.is_dir() and any(out.iterdir()):
        shards = Shards.open(out, tokenizer)
        if shards.manifest["source"] != source:
            raise DataError(f"out: {out} holds shards of other text or options; give a new folder, or remove this one")
        return shards
    needed = f"about {_mebibytes(2 * survey.bytes)} MiB are needed; the unfinished shards were removed"
    with explain_full_disk(out, needed), new_folder(out) as partial:
        _write(partial, survey, tokenizer, source)
    return Shards.open(out, tokenizer)


class _Survey:
    """Reads the text a first time, to compute its hash and to choose the held-out documents.

    Keeps 16 bytes per document. A corpus that cannot be read fails here, before anything is written.
    """

    def __init__(self, documents: Documents, fraction: float):
        hashes, sizes, whole = array("Q"), array("Q"), hashlib.sha256()
        for fragments in documents.streams():
            digest, size = _digest(fragments)
            whole.update(digest)
            hashes.append(int.from_bytes(digest[:8], "big"))
            sizes.append(size)
        self.hash = whole.hexdigest()
        self.bytes = sum(sizes)
        self._documents = documents
        threshold = _threshold(np.asarray(hashes), np.asarray(sizes), fraction)
        self._held_out = None if threshold is None else np.asarray(hashes) < threshold
        self._train_sentences = 0 if self._held_out is not None else self._cut(fraction)

    def sentences(self) -> Iterator[tuple[str, str]]:
        """Reads the text again. Yields (split, sentence), and (split, "") after the last one of a document."""
        for number, fragments in enumerate(self._documents.streams()):
            split = SPLITS[self._is_held_out(number)]
            for position, sentence in enumerate(sentences(fragments)):
                if self._held_out is None and position == self._train_sentences:
                    yield split, ""
                    split = SPLITS[1]
                yield split, sentence
            yield split, ""

    def _is_held_out(self, number: int) -> bool:
        """Returns whether a document is held out. `_write` notices documents added after the first reading."""
        return self._held_out is not None and number < len(self._held_out) and bool(self._held_out[number])

    def _cut(self, fraction: float) -> int:
        """Returns how many sentences of the only document (or of each copy of it) are for training."""
        count = sum(1 for _ in sentences(next(self._documents.streams())))
        if count < 2:
            raise DataError("paths: at least two sentences expected, so that one can be held out for validation")
        return max(1, count - max(1, round(fraction * count)))


def _threshold(hashes: np.ndarray, sizes: np.ndarray, fraction: float) -> int | None:
    """Returns the hash below which documents are held out; None if there is only one document (or copies of it)."""
    order = np.argsort(hashes, kind="stable")
    distinct, first = np.unique(hashes[order], return_index=True)
    if len(distinct) == 1:
        return None
    before = np.concatenate(([0], np.cumsum(sizes[order])))[first]  # bytes below each distinct hash
    # Takes the number of documents whose bytes are nearest to the fraction. Sentence pairs need two documents.
    nearest = int(np.argmin(np.abs(before - fraction * sizes.sum())))
    least = 2 if len(distinct) >= 4 else 1
    return int(distinct[min(max(nearest, least), len(distinct) - least)])


def _digest(fragments: Iterable[Fragment]) -> tuple[bytes, int]:
    """Returns the hash of a document, and its size in UTF-8 bytes with a newline at the end."""
    digest, size, newline = hashlib.blake2b(digest_size=16), 1, ""
    for text, ends in fragments:
        data = (newline + text).encode()
        digest.update(data)
        size += len(data)
        newline = "\n" * ends
    return digest.digest(), size


class _Writer:
    """Appends to the three files of a split: tokens, sentences, documents."""

    def __init__(self, files: list[BinaryIO], token: np.dtype, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._files = dict(zip(PARTS, files, strict=True))
        self._dtypes = dict(zip(PARTS, (token, _OFFSET, _OFFSET), strict=True))
        self._new: dict[str, list[int]] = {"tokens": [], "sentences": [0], "documents": [0]}
        self._in_document = False
        counted = ("documents", "sentences", "tokens", "bytes", "characters", "unknown_tokens", "unknown_characters")
        self.counts = dict.fromkeys(counted, 0)

    def add(self, sentence: str, ids: list[int]) -> None:
        """Adds a sentence and its ids. An empty sentence ends the document."""
        self.counts["bytes"] += len(sentence.encode())
        self.counts["characters"] += len(sentence)
        if self._tokenizer.unknown in ids:
            self.counts["unknown_tokens"] += ids.count(self._tokenizer.unknown)
            self.counts["unknown_characters"] += self._tokenizer.count_unknown(sentence)
        if ids:  # a sentence of control characters has no token
            self._new["tokens"] += ids
            self.counts["tokens"] += len(ids)
            self.counts["sentences"] += 1
            self._new["sentences"].append(self.counts["tokens"])
            self._in_document = True
        if not sentence and self._in_document:
            self.counts["documents"] += 1
            self._new["documents"].append(self.counts["sentences"])
            self._in_document = False

    def write(self) -> None:
        """Writes what was added since the last call."""
        for part, values in self._new.items():
            self._files[part].write(np.array(values, self._dtypes[part]).tobytes())
            values.clear()


def _write(folder: Path, survey: _Survey, tokenizer: Tokenizer, source: dict[str, Any]) -> None:
    """Writes all files. Raises DataError if a split has no token, or if the text changed after the survey."""
    token = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    with ExitStack() as stack:
        writers = {}
        for name in SPLITS:
            files = [stack.enter_context(open(folder / f"{name}.{part}", "wb")) for part in PARTS]
            writers[name] = _Writer(files, token, tokenizer)
        for batch in _batches(survey.sentences()):
            _write_batch(batch, writers, tokenizer)
    manifest = {
        "format": FORMAT,
        "dtype": token.str,
        "tokenizer": {
            "kind": tokenizer.kind,
            "hash": tokenizer.hash,
            "vocab_size": tokenizer.vocab_size,
            "specials": tokenizer.specials,
        },
        "source": source,
        "splits": {name: writer.counts for name, writer in writers.items()},
    }
    for name, counts in manifest["splits"].items():
        if not counts["tokens"]:
            raise DataError(f"paths: the tokenizer finds no token in the {name} text; more text is needed")
    if survey.bytes != sum(counts["bytes"] for counts in manifest["splits"].values()):
        raise DataError("paths: the text has changed while it was read; prepare it again")
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _batches(sentences: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Yields the pairs in lists of at most _BATCH sentences and about _BATCH_CHARACTERS."""
    batch, characters = [], 0
    for split, sentence in sentences:
        batch.append((split, sentence))
        characters += len(sentence)
        if len(batch) >= _BATCH or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    yield batch


def _write_batch(batch: list[tuple[str, str]], writers: dict[str, _Writer], tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_corpus([sentence for _, sentence in batch])
    for (split, sentence), found in zip(batch, ids, strict=True):
        writers[split].add(sentence, found)
    for writer in writers.values():
        writer.write()


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: a folder of shards expected, but there is no manifest.json in it") from None
    except ValueError as error:
        raise DataError(f"{file}: not the manifest of shards ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(
            f"{file}: the manifest of shards of format {FORMAT} expected, got {str(manifest)[:60]}; prepare them again"
        )
    return manifest


def _mebibytes(size: int) -> int:
    return max(1, round(size / 2**20))
