"""Tagged sentences in columns: separators, documents, IOB1, and what is said about bad files."""

import pytest

from fastlm.data import DataError
from fastlm.data.labelled import Columns, find_format
from fastlm.data.labelled.conll import to_bio

CONLL2003 = """-DOCSTART- -X- -X- O

Bonn NNP I-NP I-LOC
Koeln NNP I-NP B-LOC
met VBD I-VP O

It PRP I-NP O

-DOCSTART- -X- -X- O

Ann NNP I-NP I-PER
Lee NNP I-NP I-PER
"""


def write(tmp_path, text):
    path = tmp_path / "a.conll"
    path.write_bytes(text.encode())
    return path


def test_2003_has_documents_and_iob1(tmp_path):
    path, said = write(tmp_path, CONLL2003), []
    examples = find_format("conll2003").read(path, said.append)
    assert [(e.id, e.words, e.tags, e.document) for e in examples] == [
        ("0", ("Bonn", "Koeln", "met"), ("B-LOC", "B-LOC", "O"), 0),
        ("1", ("It",), ("O",), 0),
        ("2", ("Ann", "Lee"), ("B-PER", "I-PER"), 1),
    ]
    assert [e.where for e in examples] == [f"{path}:{line}" for line in (3, 7, 11)]
    assert said == [f"{path}: 2 of 6 tags turned from IOB1 to BIO: I- to B- where an entity begins"]


def test_any_columns_can_be_chosen(tmp_path):
    path = write(tmp_path, CONLL2003)
    read = find_format("conll", columns=Columns(text="0", label="1")).read
    assert read(path, pytest.fail)[0].tags == ("NNP", "NNP", "VBD")
    path = write(tmp_path, "1\tNew York\tB-LOC\textra\n2\t\xa0\tO\textra\n")
    (example,) = find_format("conll", columns=Columns(text="1", label="-2")).read(path)
    assert example.words == ("New York", "\xa0") and example.tags == ("B-LOC", "O")


def test_2000_has_chunks_in_its_last_column_and_no_documents(tmp_path):
    path = write(tmp_path, "He PRP B-NP\r\nran VBD B-VP\r\n  \r\nFast RB B-ADVP\r\n")
    examples = find_format("conll2000").read(path, pytest.fail)
    assert [(e.tags, e.document) for e in examples] == [(("B-NP", "B-VP"), 0), (("B-ADVP",), 1)]


def test_a_test_file_may_hold_words_alone(tmp_path):
    path = write(tmp_path, "Ann\nran\n")
    (example,) = find_format("conll").read(path, labelled=False)
    assert example.words == ("Ann", "ran") and example.tags is None
    with pytest.raises(DataError, match=r"a.conll:1: the columns 0 \(word\) and -1 \(tag\) expected, .* got 1 columns"):
        find_format("conll").read(path)


@pytest.mark.parametrize(
    ("iob1", "bio"),
    [
        ("I-A I-A I-B O I-B", "B-A I-A B-B O B-B"),
        ("I-A B-A I-A", "B-A B-A I-A"),
        ("B-A I-A O B-B I-A", "B-A I-A O B-B B-A"),
        ("B-A I-A E-A S-B O", "B-A I-A E-A S-B O"),
        ("PER O NOUN I", "PER O NOUN I"),
        ("I-A-1 I-A-1 I-A-2", "B-A-1 I-A-1 B-A-2"),
    ],
)
def test_iob1_is_turned_to_bio(iob1, bio):
    assert to_bio(iob1.split()) == tuple(bio.split())
    assert to_bio(bio.split()) == tuple(bio.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.conll: a word and its tag per line expected, got an empty file"),
        ("-DOCSTART- O\n\n", "got an empty file"),
        ("Ann B-PER\nran\n", "a.conll:2: 2 columns expected, as before, got 1"),
        ("Ann B-PER\nthe old O\n", "a.conll:2: 2 columns expected, as before, got 3"),
        ("Ann\tB-PER\n\tO\n", r"a.conll:2: a word and its tag expected, got \['', 'O'\]"),
    ],
)
def test_words_and_tags_that_differ_are_named_with_their_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        find_format("conll").read(write(tmp_path, text))


def test_a_column_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"a.conll:1: the columns 0 \(word\) and 3 \(tag\) expected, from 0, got 2"):
        find_format("conll2003").read(write(tmp_path, "Ann B-PER\n"))
