"""Documents and sentences from text files."""

from __future__ import annotations

import gzip
import json
import lzma
import re
import time
import tracemalloc
from pathlib import Path

import corpora
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlm.data import DataError, corpus, novels, read_documents, sentences
from fastlm.data.sentences import split_sentences

# Texts of n characters that could make a pattern backtrack, or make a reader hold all of the text.
HARD = {
    "dots": lambda n: "." * n,
    "one word": lambda n: "a" * n,
    "quotes": lambda n: '"' * n,
    "abbreviations": lambda n: "Mr. " * (n // 4),
    "spaces": lambda n: "No." + " " * n + "Yes.",
    "blank lines": lambda n: "No." + "\n" * n + "Yes.",
    "dots and spaces": lambda n: ". " * (n // 2),
    "closing brackets": lambda n: "." + ")" * n,
    "opening quotes": lambda n: ("." + " " + '"' * 998) * (n // 1000),
    "dashes": lambda n: ". " + "-" * n,
    "one line": lambda n: "It was late. She slept. " * (n // 24),
    "no end": lambda n: "it was late and " * (n // 16),
    "ideographs": lambda n: "我。" * (n // 2),
}
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


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_line_ends_and_other_white_space(tmp_path, kind, end):
    """LF, CR LF and CR end a line; form feeds and U+2028 are only white space."""
    text = end.join(["one", "two", "\x0cthree\x0b\x0bfour\u2028\u2028five\x85\x1csix", "", "seven", " \t", "", "eight"])
    path = write(tmp_path / f"a.{kind}", text if kind == "txt" else json.dumps({"text": text}))
    assert list(read_documents(path, document="file")) == ["one two three four five six\nseven\neight"]


def test_byte_order_marks_of_joined_files(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeffone\n\n\ufefftwo.\n\ufeffThree.\n\n\ufeff\n\nfour")
    assert list(read_documents(path)) == ["one", "two. Three.", "four"]
    lines = ["\ufeff" + json.dumps({"text": "one"}), "\ufeff" + json.dumps({"text": "\ufefftwo"}), "\ufeff"]
    assert list(read_documents(write(tmp_path / "a.jsonl", "\n".join(lines)))) == ["one", "two"]


def paragraphs_by_hand(text: str) -> list[str]:
    blocks = [[]]
    for line in re.split("\r\n|\r|\n", text):
        blocks = [*blocks, []] if not line.strip() else [*blocks[:-1], [*blocks[-1], *line.split()]]
    return [" ".join(words) for words in blocks if words]


@corpora.no_deadline
@given(text=st.text(alphabet="ab.B。」 \t\n\r\u2028é", max_size=60), block=st.integers(1, 12))
def test_blocks_are_cut_anywhere(tmp_path_factory, text, block):
    path = write(tmp_path_factory.mktemp("blocks") / "a.txt", text + "\n\nEnd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "BLOCK", block)
        assert list(read_documents(path)) == [*paragraphs_by_hand(text), "End"]
        assert list(read_documents(path, "file")) == ["\n".join([*paragraphs_by_hand(text), "End"])]
        streamed = [list(sentences.sentences(fragments)) for fragments in read_documents(path).streams()]
    whole = [list(sentences.sentences(corpus.unwrap(document))) for document in read_documents(path)]
    assert streamed == whole and ["".join(found) for found in whole] == [f"{d}\n" for d in read_documents(path)]


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
@pytest.mark.parametrize("name", HARD)
def test_any_text_takes_linear_time(tmp_path, name, kind):
    """Eight times the text may take up to 24 times as long; quadratic work would take 64 times as long."""

    def seconds(n: int) -> float:
        text = HARD[name](n)
        path = write(tmp_path / f"a.{kind}", text if kind == "txt" else json.dumps({"text": text}))
        start = time.process_time()
        assert all(
            len(s) <= 1 + sentences.MAX_CHARACTERS
            for f in read_documents(path).streams()
            for s in sentences.sentences(f)
        )
        return time.process_time() - start

    short = min(seconds(20_000) for _ in range(3))
    assert seconds(160_000) < 0.2 + 24 * short


@pytest.mark.parametrize("name", ["one word", "no end", "spaces", "dots"])
def test_a_line_of_any_length_takes_bounded_memory(tmp_path, name):
    path = write(tmp_path / "a.txt", HARD[name](10_000_000))
    tracemalloc.start()
    for fragments in read_documents(path, "file").streams():
        for _ in sentences.sentences(fragments):
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_500_000


def test_files_in_order_and_read_again(tmp_path):
    paths = [write(tmp_path / "b.txt", "one"), write(tmp_path / "a.txt", b"\xef\xbb\xbftwo\n\nthree")]
    documents = read_documents(paths)
    assert list(documents) == list(documents) == ["one", "two", "three"]


def test_novels():
    documents = list(read_documents(novels()))
    assert len(documents) == 55 + 48 + 31 + 24 + 61 + 50  # chapters of the six novels, as published
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
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "b\xff"}',
            r"a\.jsonl: UTF-8 text expected, got the byte 0xff at offset 25$",
        ),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b\0"}', r"a\.jsonl: line 2 is not JSON \(Invalid control character"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl: line 1 is not JSON"),
        (
            "a.jsonl",
            b'{"text": "\\ud83d\\ude00"}\n{"text": "ab\\ud800"}',
            r'a\.jsonl: line 2: "text" holds \\ud800 without the other half of its surrogate pair \(character 2\)',
        ),
        ("a.txt", "é".encode() * 70_000 + b"\xe9 a", r"got the byte 0xe9 at offset 140000$"),
        ("a.txt", b"a" * 70_000 + b"\xe2\x82", r"got the byte 0xe2 at offset 70000$"),
        ("a.txt", b"ab \0 c", r"a\.txt: UTF-8 text expected, got the byte 0x00 at offset 3 \(is it UTF-16\?\)$"),
        (
            "a.txt.gz",
            "later".encode("utf-16-le"),
            r"byte 0x00 at offset 1 of the decompressed text \(is it UTF-16\?\)$",
        ),
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
        ["«Oui.»", "«Non.»", "¿Qué?", "¡Nada!"],
        ["यह एक वाक्य है।", "यह दूसरा है।"],
        ["هل أنت هنا؟", "نعم."],
        ["یہ ایک جملہ ہے۔", "یہ دوسرا ہے۔"],
        ["Սա նախադասություն է։", "Սա երկրորդն է։"],
        ["ይህ ዓረፍተ ነገር ነው።", "ይህ ሁለተኛ ነው።"],
    ],
)
def test_sentences(sentences):
    assert split_sentences(" ".join(sentences)) == sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["今天下雨。", "我们回家吧！", "好吗？", "好"],
        ["「雨だ。」と言った。", "「そう？」", "Yes."],
        ["他说：“你好！”然后走了。", "真的？！", "是的……"],
    ],
)
def test_ideographic_sentences_end_without_white_space(sentences):
    joined = "".join(s + " " * (s[-1] == "」") for s in sentences)
    assert split_sentences(joined) == sentences


def test_a_sentence_without_end_is_cut(monkeypatch):
    monkeypatch.setattr(sentences, "MAX_CHARACTERS", 10)
    assert split_sentences("the rain fell and fell. No") == ["the rain", "fell and", "fell.", "No"]
    assert split_sentences("a" * 25 + ". No") == ["a" * 10, "a" * 10, "aaaaa.", "No"]


@corpora.no_deadline
@given(st.lists(st.text(alphabet="aB.!?\"'()_-1 é", min_size=1), max_size=20))
def test_sentences_keep_the_text(words):
    paragraph = " ".join(" ".join(words).split())
    assert " ".join(split_sentences(paragraph)) == paragraph
