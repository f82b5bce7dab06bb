"""Documents and sentences from text files."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import corpora
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlm.data import DataError, novels, read_documents
from fastlm.data.sentences import split_sentences

WRAPPED = "It was\nlate.\n\n\n  The rain  fell\r\nhard.  \n \t\nNo\n"


def write(path: Path, content: str | bytes) -> Path:
    content = content.encode() if isinstance(content, str) else content
    packed = {".xz": lzma.compress, ".gz": gzip.compress}.get(path.suffix, bytes)(content)
    path.write_bytes(packed)
    return path


@pytest.mark.parametrize("packing", ["", ".xz", ".gz"])
def test_blank_line_and_file(tmp_path, packing):
    path = write(tmp_path / f"a.txt{packing}", WRAPPED)
    assert list(read_documents(path)) == ["It was late.", "The rain fell hard.", "No"]
    assert list(read_documents([path], document="file")) == ["It was late.\nThe rain fell hard.\nNo"]


@pytest.mark.parametrize("packing", ["", ".xz", ".gz"])
def test_json_lines(tmp_path, packing):
    lines = [json.dumps({"text": WRAPPED, "id": 1}), "", json.dumps({"text": " "}), json.dumps({"text": "é\u2028b"})]
    path = write(tmp_path / f"a.jsonl{packing}", "\n".join(lines))
    assert list(read_documents(path)) == ["It was late.\nThe rain fell hard.\nNo", "é b"]


def test_files_in_order_and_read_again(tmp_path):
    paths = [write(tmp_path / "b.txt", "one"), write(tmp_path / "a.txt", b"\xef\xbb\xbftwo\n\nthree")]
    documents = read_documents(paths)
    assert list(documents) == list(documents) == ["one", "two", "three"]


def test_novels():
    documents = list(read_documents(novels()))
    assert len(documents) == 55 + 48 + 31 + 24 + 61 + 50  # chapters of the six, as published
    assert documents[0].split("\n")[:4] == ["EMMA", "By Jane Austen", "VOLUME I", "CHAPTER I"]
    assert (
        documents[0]
        .split("\n")[4]
        .startswith("Emma Woodhouse, handsome, clever, and rich, with a comfortable home and")
    )
    assert documents[-1].endswith("THE END")
    assert 700_000 < sum(len(document.split()) for document in documents) < 720_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"a\xc3\xa9\nd\xe9f\n", r"a\.txt: UTF-8 text expected, got the byte 0xe9 at offset 5$"),
        ("a.txt", b"\xef\xbb\xbf\xff", r"a\.txt: UTF-8 text expected, got the byte 0xff at offset 3$"),
        ("a.jsonl.xz", b'{"text": "a"}\n\xff', r"0xff at offset 14 of the decompressed text$"),
        ("a.txt", b" \n\n", r"a\.txt: no text in it$"),
        ("a.txt", b"", r"no text in it"),
        ("a.jsonl", b'{"text": ""}', r"no text in it"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "b"', r"a\.jsonl: line 3 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n["b"]', r'line 2: an object such as \{"text": "\.\.\."\} expected, got \'\["b"\]'),
        ("a.jsonl", b'{"text": 3}', r"line 1: an object"),
    ],
)
def test_bad_content(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        list(read_documents(path))


@pytest.mark.parametrize("packing", [".xz", ".gz"])
def test_damaged_compression(tmp_path, packing):
    path = write(tmp_path / f"a.txt{packing}", "\n".join(map(str, range(9999))))
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"text, not packed", whole[:40] + b"\0" * 40 + whole[80:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged or cut short"):
            list(read_documents(path))


@pytest.mark.parametrize(
    ("paths", "document", "message"),
    [
        ([], "file", "at least one text file expected, got none"),
        (["no.txt"], "file", r"no\.txt: no such file"),
        (["a.pdf"], "file", r"a\.pdf: a file whose name ends in \.txt, \.txt\.xz"),
        (["folder.txt"], "file", "a file expected, got a folder"),
        (["a.txt"], "line", r"document: one of blank-line, file expected, got 'line'"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, paths, document, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(ValueError, match=message):
        read_documents(paths, document)


@pytest.mark.parametrize(
    "sentences",
    [
        ["It was late.", "She slept!", "Why?", "No one knew."],
        ["Mr. Weston and Mrs. J. Elton met Dr. Grant.", "They spoke."],
        ['"Is it so?" said he.', '"No."', "She laughed."],
        ["He left (it rained.)", "_Then_ he came back."],
        ["“Yes!”", "‘Well,’ she said.", "It was 3.", "4 came."],
        ["You and I.", "We go."],
        ["it rained. he slept. e.g. here"],
        ["Oh!!", "Really?!", "Yes..."],
    ],
)
def test_sentences(sentences):
    assert split_sentences(" ".join(sentences)) == sentences


@corpora.no_deadline
@given(st.lists(st.text(alphabet="aB.!?\"'()_-1 é", min_size=1), max_size=20))
def test_sentences_keep_the_text(words):
    paragraph = " ".join(" ".join(words).split())
    assert " ".join(split_sentences(paragraph)) == paragraph
