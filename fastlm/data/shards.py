"""A corpus tokenised once, in files that are mapped into memory, not read.

A folder of shards holds, for each split ("train", "validation"), little-endian and without a header,

    SPLIT.tokens      uint16 (uint32 if the vocabulary is above 65,536): the text as one stream of ids
    SPLIT.sentences   int64 (sentences + 1): where each sentence starts among the tokens, and the end
    SPLIT.documents   int64 (documents + 1): where each document starts among the sentences, and the end

and manifest.json, which says what is there and what it was made from.

Validation holds out whole documents: those of smallest hash, until they are `validation_fraction` of the bytes. So it
is spread over the corpus, and copies of a document are all on one side. If the corpus is one document, its last
sentences are held out.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fastlm.data.corpus import DataError, Documents, read_documents
from fastlm.data.sentences import split_sentences
from fastlm.data.tokenizer import Tokenizer
from fastlm.files import explain_full_disk, new_folder

FORMAT = 1
SPLITS = ("train", "validation")
PARTS = ("tokens", "sentences", "documents")
_PIECE = 4096  # sentences that are tokenised at a time
_OFFSET = np.dtype("<i8")


@dataclass(frozen=True)
class Split:
    """One split, mapped read-only: tokens (tokens,), sentences (sentences + 1,), documents (documents + 1,).

    bytes: UTF-8 bytes of its text, with one for the space or newline after each sentence.
    """

    name: str
    tokens: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray
    bytes: int


class Shards:
    """An opened folder of shards.

    kind: the tokenizer's, "bpe" or "wordpiece". vocab_size, specials, tokenizer_hash: the tokenizer's.
    manifest: all of manifest.json. `split(name)` maps a split's files.
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

    @classmethod
    def open(cls, path: str | Path, tokenizer: Tokenizer | None = None) -> Shards:
        """Open the shards of a folder, and check every file's size and, if given, the tokenizer.

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
        """The split of that name, "train" or "validation"."""
        if name not in self._splits:
            raise ValueError(f"split: one of {', '.join(SPLITS)} expected, got {name!r}")
        return self._splits[name]

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
    """Tokenise text files into the new folder `out`, and open it.

    All or nothing: the folder appears when it is whole. If it is there already and was made from the same text,
    tokenizer and options, it is opened as it is. The text is read twice; memory holds the text of a document and the
    tokens of a few thousand sentences. `document`: see corpus.py. Raises DataError for text that cannot be read or
    split, and for an `out` that holds anything else; OSError for a full disk. One process at a time may prepare a
    folder.
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
        _write(partial, survey, documents, tokenizer, source)
    return Shards.open(out, tokenizer)


class _Survey:
    """A first reading: what the text is, and which documents are held out.

    It keeps 16 bytes a document. A corpus that cannot be read is found here, before any work.
    """

    def __init__(self, documents: Documents, fraction: float):
        hashes, sizes, whole = array("Q"), array("Q"), hashlib.sha256()
        for text in documents:
            digest = _digest(text)
            whole.update(digest)
            hashes.append(int.from_bytes(digest[:8], "big"))
            sizes.append(len(text.encode()) + 1)
        self.hash = whole.hexdigest()
        self.bytes = sum(sizes)
        self.fraction = fraction
        self._threshold = _threshold(np.asarray(hashes), np.asarray(sizes), fraction)

    def parts(self, text: str) -> Iterator[tuple[str, list[str]]]:
        """The splits that a document goes to, with the sentences; each ends in what follows it, a space or newline."""
        sentences = [s + end for p in text.split("\n") for s, end in _with_ends(split_sentences(p))]
        if self._threshold is not None:
            yield SPLITS[int.from_bytes(_digest(text)[:8], "big") < self._threshold], sentences
            return
        if len(sentences) < 2:
            raise DataError("paths: at least two sentences expected, so that one can be held out for validation")
        cut = len(sentences) - max(1, round(self.fraction * len(sentences)))
        yield "train", sentences[: max(1, cut)]
        yield "validation", sentences[max(1, cut) :]


def _threshold(hashes: np.ndarray, sizes: np.ndarray, fraction: float) -> int | None:
    """Documents of a smaller hash are held out; None if there is but one document (or copies of it)."""
    order = np.argsort(hashes, kind="stable")
    distinct, first = np.unique(hashes[order], return_index=True)
    if len(distinct) == 1:
        return None
    before = np.concatenate(([0], np.cumsum(sizes[order])))[first]  # bytes below each distinct hash
    # The number of documents whose bytes come nearest; two are the least that sentence pairs can be made of.
    nearest = int(np.argmin(np.abs(before - fraction * sizes.sum())))
    least = 2 if len(distinct) >= 4 else 1
    return int(distinct[min(max(nearest, least), len(distinct) - least)])


def _with_ends(sentences: list[str]) -> Iterator[tuple[str, str]]:
    return ((s, "\n" if i == len(sentences) else " ") for i, s in enumerate(sentences, start=1))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class _Piece(NamedTuple):
    """Sentences of one document, and whether they are its last."""

    split: str
    sentences: list[str]
    ends: bool


class _Writer:
    """Appends documents to the three files of a split: tokens, sentences, documents."""

    def __init__(self, files: list[BinaryIO], token: np.dtype):
        self._tokens, self._sentences, self._documents = files
        self._dtype = token
        self._in_document = False
        self.counts = {"documents": 0, "sentences": 0, "tokens": 0, "bytes": 0}
        for offsets in files[1:]:
            offsets.write(np.zeros(1, _OFFSET).tobytes())

    def add(self, sentences: list[list[int]], size: int) -> None:
        """Sentences of a document: their ids, and their UTF-8 bytes."""
        sentences = [s for s in sentences if s]  # control characters alone are no token
        lengths = np.array([len(s) for s in sentences], _OFFSET)
        self._tokens.write(np.array([t for s in sentences for t in s], self._dtype).tobytes())
        self._sentences.write((self.counts["tokens"] + np.cumsum(lengths)).astype(_OFFSET).tobytes())
        self.counts["tokens"] += int(lengths.sum())
        self.counts["sentences"] += len(sentences)
        self.counts["bytes"] += size
        self._in_document |= bool(sentences)

    def end_document(self) -> None:
        if self._in_document:
            self._documents.write(np.array([self.counts["sentences"]], _OFFSET).tobytes())
            self.counts["documents"] += 1
        self._in_document = False


def _write(folder: Path, survey: _Survey, documents: Documents, tokenizer: Tokenizer, source: dict[str, Any]) -> None:
    token = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    with ExitStack() as stack:
        writers = {}
        for name in SPLITS:
            files = [stack.enter_context(open(folder / f"{name}.{part}", "wb")) for part in PARTS]
            writers[name] = _Writer(files, token)
        for batch in _batches(_pieces(documents, survey)):
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
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _pieces(documents: Documents, survey: _Survey) -> Iterator[_Piece]:
    """Documents in pieces, so that a book is not tokenised at a stroke."""
    for text in documents:
        for split, sentences in survey.parts(text):
            for start in range(0, len(sentences), _PIECE):
                yield _Piece(split, sentences[start : start + _PIECE], start + _PIECE >= len(sentences))


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    batch, count = [], 0
    for piece in pieces:
        batch.append(piece)
        count += len(piece.sentences)
        if count >= _PIECE:
            yield batch
            batch, count = [], 0
    yield batch


def _write_batch(batch: list[_Piece], writers: dict[str, _Writer], tokenizer: Tokenizer) -> None:
    ids = iter(tokenizer.encode_corpus([s for piece in batch for s in piece.sentences]))
    for piece in batch:
        writer = writers[piece.split]
        writer.add([next(ids) for _ in piece.sentences], sum(len(s.encode()) for s in piece.sentences))
        if piece.ends:
            writer.end_document()


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: a folder of shards expected, but there is no manifest.json in it") from None
    except ValueError as error:
        raise DataError(f"{file}: not the manifest of shards ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{file}: the manifest of shards of format {FORMAT} expected, got {str(manifest)[:60]}")
    return manifest


def _mebibytes(size: int) -> int:
    return max(1, round(size / 2**20))
