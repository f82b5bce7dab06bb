"""Shards: what prepare writes, what open checks, and that no unfinished folder stays."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from itertools import pairwise
from pathlib import Path

import corpora
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlm.data import DataError, Shards, prepare, shards
from fastlm.data.sentences import MAX_CHARACTERS, split_sentences


@pytest.fixture(scope="module", params=["bpe", "wordpiece"])
def prepared(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return prepare(text(folder), folder / "shards", corpora.tokenizer(request.param), validation_fraction=0.2)


def text(folder: Path, documents: list[str] | None = None) -> Path:
    """Writes a .jsonl of documents, in which a blank line ends a paragraph."""
    path = folder / "text.jsonl"
    documents = corpora.chapters() if documents is None else documents
    path.write_text("".join(json.dumps({"text": d.replace("\n", "\n\n")}) + "\n" for d in documents))
    return path


def documents_of(shards: Shards, split: str) -> list[list[int]]:
    """Returns the token ids of each document."""
    part = shards.split(split)
    bounds = part.sentences[part.documents]
    return [part.tokens[a:b].tolist() for a, b in pairwise(bounds)]


def test_documents_are_whole_and_in_order(prepared):
    tokenizer = corpora.tokenizer(prepared.kind)
    expected = [tokenizer.encode(chapter + "\n") for chapter in corpora.chapters()]
    train, validation = documents_of(prepared, "train"), documents_of(prepared, "validation")
    assert train and validation
    assert train == [d for d in expected if d in train] and validation == [d for d in expected if d in validation]
    assert sorted(train + validation) == sorted(expected)


def test_counts_and_files(prepared):
    chapters, tokenizer = corpora.chapters(), corpora.tokenizer(prepared.kind)
    splits = prepared.manifest["splits"]
    total = {key: sum(counts[key] for counts in splits.values()) for key in splits["train"]}
    assert total["documents"] == len(chapters)
    assert total["bytes"] == sum(len(chapter.encode()) + 1 for chapter in chapters)
    assert total["sentences"] == sum(len(split_sentences(p)) for chapter in chapters for p in chapter.split("\n"))
    assert total["tokens"] == sum(len(tokenizer.encode(chapter + "\n")) for chapter in chapters)
    size = {file.name: file.stat().st_size for file in prepared.path.iterdir() if file.name != "manifest.json"}
    for name, counts in splits.items():
        assert size.pop(f"{name}.tokens") == 2 * counts["tokens"]
        assert size.pop(f"{name}.sentences") == 8 * (counts["sentences"] + 1)
        assert size.pop(f"{name}.documents") == 8 * (counts["documents"] + 1)
    assert not size
    assert prepared.tokenizer_hash == tokenizer.hash and prepared.vocab_size == tokenizer.vocab_size


def test_sentences_are_those_of_the_text(prepared):
    tokenizer, part = corpora.tokenizer(prepared.kind), prepared.split("train")
    tokens = part.tokens[: part.sentences[20]].tolist()
    text = tokenizer.decode(tokens).replace("\n", " ")
    bounds = part.sentences[:21]
    each = [tokenizer.decode(tokens[a:b]).strip() for a, b in pairwise(bounds)]
    assert "".join(text.split()) == "".join("".join(each).split())
    assert all(sentence[-1] in ".!?\"'_" for sentence in each if " " in sentence and len(sentence) > 20)


def test_held_out_fraction(prepared):
    splits = prepared.manifest["splits"]
    held_out = splits["validation"]["bytes"] / (splits["train"]["bytes"] + splits["validation"]["bytes"])
    assert abs(held_out - 0.2) < 0.1  # of 12 chapters


@corpora.no_deadline
@given(sizes=st.lists(st.integers(1, 100), min_size=2, max_size=40), fraction=st.floats(0.01, 0.99), data=st.data())
def test_threshold_is_the_nearest(sizes, fraction, data):
    hashes = data.draw(st.lists(st.integers(0, 60), min_size=len(sizes), max_size=len(sizes)))
    threshold = shards._threshold(np.array(hashes, np.uint64), np.array(sizes), fraction)
    distinct = sorted(set(hashes))
    if len(distinct) == 1:
        assert threshold is None
        return
    least = 2 if len(distinct) >= 4 else 1
    held_out = {
        t: sum(s for s, h in zip(sizes, hashes, strict=True) if h < t) for t in distinct[least : -least or None]
    }
    held_out.setdefault(threshold, sum(s for s, h in zip(sizes, hashes, strict=True) if h < threshold))
    assert least <= distinct.index(threshold) <= len(distinct) - least
    best = min(abs(size - fraction * sum(sizes)) for size in held_out.values())
    assert abs(held_out[threshold] - fraction * sum(sizes)) == pytest.approx(best)


def test_copies_of_a_document_are_on_one_side(tmp_path):
    path = text(tmp_path, [f"Text {i % 7}. It ends." for i in range(70)])
    result = prepare(path, tmp_path / "out", corpora.tokenizer("wordpiece"), validation_fraction=0.3)
    train, validation = ({tuple(d) for d in documents_of(result, name)} for name in shards.SPLITS)
    assert len(train) == 5 and len(validation) == 2 and not train & validation


def test_one_document_holds_out_its_end(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"Sentence {i}. More {i}." for i in range(20)))
    tokenizer = corpora.tokenizer("bpe")
    result = prepare(path, tmp_path / "out", tokenizer, validation_fraction=0.1, document="file")
    splits = result.manifest["splits"]
    assert [splits[name]["documents"] for name in shards.SPLITS] == [1, 1]
    assert [splits[name]["sentences"] for name in shards.SPLITS] == [36, 4]
    end = "sentence 18. more 18.\nsentence 19. more 19.\n"
    assert tokenizer.decode(result.split("validation").tokens.tolist()) == end
    assert splits["validation"]["bytes"] == len(end)


def test_long_documents_in_batches(prepared, monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "_BATCH", 7)
    tokenizer = corpora.tokenizer(prepared.kind)
    batches = prepare(text(tmp_path), tmp_path / "shards", tokenizer, validation_fraction=0.2)
    for file in prepared.path.iterdir():
        assert (batches.path / file.name).read_bytes() == file.read_bytes()


def test_large_vocabulary_has_wide_tokens(tmp_path, monkeypatch):
    tokenizer = corpora.tokenizer("bpe")
    monkeypatch.setattr(tokenizer, "vocab_size", 65536)
    narrow = prepare(text(tmp_path), tmp_path / "narrow", tokenizer)
    monkeypatch.setattr(tokenizer, "vocab_size", 65537)
    wide = prepare(text(tmp_path), tmp_path / "wide", tokenizer)
    assert (narrow.manifest["dtype"], wide.manifest["dtype"]) == ("<u2", "<u4")
    np.testing.assert_array_equal(narrow.split("train").tokens, wide.split("train").tokens)


def test_same_text_is_not_prepared_again(tmp_path, monkeypatch):
    tokenizer, out = corpora.tokenizer("bpe"), tmp_path / "out"
    first = prepare(text(tmp_path), out, tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write", None)
        assert prepare(text(tmp_path), out, tokenizer).manifest == first.manifest
    with pytest.raises(DataError, match=r"out: it holds shards of other text or options"):
        prepare(text(tmp_path), out, tokenizer, validation_fraction=0.1)
    with pytest.raises(DataError, match=r"out: it holds shards of other text or options"):
        prepare(text(tmp_path, ["Other text.", "More."]), out, tokenizer)
    with pytest.raises(DataError, match=r"^tokenizer: .* made with the bpe tokenizer .* got the wordpiece tokenizer"):
        prepare(text(tmp_path), out, corpora.tokenizer("wordpiece"))
    assert Shards.open(out, tokenizer).manifest == first.manifest


def test_other_contents_are_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"out: a folder of shards expected, but there is no manifest\.json in it"):
        prepare(text(tmp_path), tmp_path / "out", corpora.tokenizer("bpe"))
    with pytest.raises(DataError, match=r"thesis\.txt: a folder to make expected, but it is a file"):
        prepare(text(tmp_path), tmp_path / "out" / "thesis.txt", corpora.tokenizer("bpe"))
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("good", [0, 3, 6])
def test_full_disk(tmp_path, monkeypatch, good):
    """The disk is full after `good` of the seven files."""

    def fsync(descriptor):
        nonlocal good
        good -= 1
        if good < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = text(tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", fsync)
    message = r"^no space left on the disk of .*/out: about 1 MiB are needed; the unfinished shards were removed$"
    with pytest.raises(OSError, match=message):
        prepare(path, tmp_path / "out", corpora.tokenizer("bpe"))
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before


def test_a_killed_process_leaves_nothing_in_the_way(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "train.tokens").write_bytes(b"half")
    prepare(text(tmp_path), tmp_path / "out", corpora.tokenizer("bpe"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "text.jsonl"]


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "_write_batch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(text(tmp_path), tmp_path / "out", corpora.tokenizer("bpe"))
    assert [file.name for file in tmp_path.iterdir()] == ["text.jsonl"]


@pytest.fixture
def copy(prepared, tmp_path):
    return Path(shutil.copytree(prepared.path, tmp_path / "copy"))


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_unknown_text_is_counted_and_warned_of(tmp_path, kind):
    tokenizer = corpora.tokenizer(kind)
    known, unknown = "It was late and she slept. ", "หมา 我。"  # the unknown text: words of 3 and 2 characters
    result = prepare(text(tmp_path, [known + unknown * 9] * 2 + [known]), tmp_path / "a", tokenizer)
    counts = [result.manifest["splits"][name] for name in shards.SPLITS]
    total = {key: sum(split[key] for split in counts) for key in counts[0]}
    documents = 2 * (len(known) + 9 * len(unknown)) + len(known)
    assert total["unknown_characters"] == 18 * 5 and documents <= total["characters"] <= documents + 3
    assert total["unknown_tokens"] == 18 * {"bpe": 5, "wordpiece": 3}[kind]
    (warning,) = result.warnings
    assert f"{90 / total['characters']:.1%} of the text's characters are unknown to its tokenizer of 600" in warning
    assert f"{total['unknown_tokens'] / total['tokens']:.1%} of the tokens" in warning and "--vocab-size" in warning
    few = prepare(text(tmp_path, [known * 60 + unknown, known]), tmp_path / "b", tokenizer)
    assert (
        few.manifest["splits"]["train"]["unknown_characters"]
        + few.manifest["splits"]["validation"]["unknown_characters"]
        == 5
    )
    assert few.warnings == [] and Shards.open(few.path).warnings == []


def test_words_that_are_too_long_are_not_called_unknown_characters(tmp_path):
    documents = [f"It was late and {'a' * 201} slept.", "She slept."]
    result = prepare(text(tmp_path, documents), tmp_path / "out", corpora.tokenizer("wordpiece"))
    (warning,) = result.warnings
    assert "of the tokens are the unknown one, most of them for words of more than 200 characters" in warning
    assert "characters are unknown" not in warning and "--vocab-size" not in warning


def test_text_that_changes_meanwhile(tmp_path, monkeypatch):
    path = text(tmp_path)
    write = shards._write

    def change_and_write(*arguments):
        path.write_text(path.read_text() + json.dumps({"text": "One more. It came late."}) + "\n")
        write(*arguments)

    monkeypatch.setattr(shards, "_write", change_and_write)
    with pytest.raises(DataError, match=r"^.*text\.jsonl: the text has changed while it was read; start again$"):
        prepare(path, tmp_path / "out", corpora.tokenizer("bpe"))
    assert list(tmp_path.iterdir()) == [path]


def test_any_text_is_tokenised_in_batches_of_bounded_size(tmp_path, monkeypatch):
    """Some of these texts would take more than linear time or memory as one piece."""
    tokenizer, sizes = corpora.tokenizer("bpe"), []
    encode = tokenizer.encode_corpus

    def measured(sentences):
        sizes.append((len(sentences), sum(map(len, sentences)), max(map(len, sentences))))
        return encode(sentences)

    monkeypatch.setattr(tokenizer, "encode_corpus", measured)
    monkeypatch.setattr(shards, "_BATCH_CHARACTERS", 100_000)
    lines = ["." * 300_000, "a" * 300_000, '"' * 100_000, "Mr. " * 50_000, "One. Two. " * 20_000, "It rained. End."]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    result = prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer, document="file")
    longest = MAX_CHARACTERS + 1
    assert all(a <= shards._BATCH and b <= 100_000 + longest and c <= longest for a, b, c in sizes)
    counts = result.manifest["splits"]
    assert (
        sum(split["bytes"] for split in counts.values()) == len("\n".join(lines)) - 1
    )  # two spaces less, one newline more
    assert sum(split["sentences"] for split in counts.values()) > 40_000


@pytest.mark.parametrize("name", [f"{s}.{p}" for s in shards.SPLITS for p in shards.PARTS])
def test_truncated_and_missing_files(copy, name):
    file = copy / name
    content = file.read_bytes()
    file.write_bytes(content[:-3])
    message = rf"{name}: {len(content)} bytes expected, got {len(content) - 3}; remove {copy} and give the"
    with pytest.raises(DataError, match=message):
        Shards.open(copy)
    file.unlink()
    with pytest.raises(DataError, match=rf"{name}: no such file, though manifest\.json names it"):
        Shards.open(copy)


@pytest.mark.parametrize("name", [f"{s}.{p}" for s in shards.SPLITS for p in shards.PARTS])
def test_a_flipped_bit(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 4
    (copy / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: damaged: its CRC-32 is not the one that was written; remove"):
        Shards.open(copy)


@pytest.mark.parametrize("name", ["sentences", "documents"])
def test_offsets_of_other_shards(copy, name):
    file, manifest = copy / f"train.{name}", json.loads((copy / "manifest.json").read_text())
    offsets = np.fromfile(file, "<i8") - 1
    offsets.tofile(file)
    manifest["crc32"][file.name] = zlib.crc32(offsets.tobytes())
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"the offsets of train do not end at its \d+ tokens"):
        Shards.open(copy)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ('{"format": 2}', r"the manifest of shards of format 3 expected, got .*; make them again, in a new folder$"),
        ("[]", r"the manifest of shards of format 3 expected"),
        ('{"format": 3', r"manifest\.json: not the manifest of shards"),
        ('{"format": 3}', r"manifest\.json: not the manifest of shards \(KeyError\('tokenizer'\)\)"),
        ("\0\1", r"manifest\.json: not the manifest of shards"),
        (None, r"a folder of shards expected, but there is no manifest\.json in it"),
    ],
)
def test_foreign_manifest(copy, manifest, message):
    (copy / "manifest.json").unlink()
    if manifest is not None:
        (copy / "manifest.json").write_text(manifest)
    with pytest.raises(DataError, match=message):
        Shards.open(copy)


def test_another_tokenizer(prepared):
    other = corpora.tokenizer({"bpe": "wordpiece", "wordpiece": "bpe"}[prepared.kind])
    assert Shards.open(prepared.path, corpora.tokenizer(prepared.kind)).vocab_size == 600
    with pytest.raises(
        DataError, match=rf"^tokenizer: .* made with the {prepared.kind} tokenizer .* got the {other.kind}"
    ):
        Shards.open(prepared.path, other)


@pytest.mark.parametrize(
    ("documents", "fraction", "message"),
    [
        (["A sentence."], 0.1, r"text\.jsonl: at least two sentences expected"),
        (["Some text.", "\x01\x02"], 0.5, r"text\.jsonl: the tokenizer finds no token in the (train|validation) part"),
        (["Some text."], 0.0, r"^validation_fraction: above 0 and below 1 expected, got 0\.0"),
        (["Some text."], 1, r"^validation_fraction: above 0 and below 1 expected, got 1"),
        ([], 0.1, r"text\.jsonl: no text in it"),
    ],
)
def test_text_that_cannot_be_split(tmp_path, documents, fraction, message):
    path = text(tmp_path, documents)
    with pytest.raises(ValueError, match=message):
        prepare(path, tmp_path / "out", corpora.tokenizer("wordpiece"), validation_fraction=fraction)
    assert list(tmp_path.iterdir()) == [path]


def test_split_name(prepared):
    with pytest.raises(ValueError, match=r"^split: one of train, validation expected, got 'test'"):
        prepared.split("test")
