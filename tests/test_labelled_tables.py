"""Labelled tables with named columns, JSON lines of each kind, and what is said about bad ones."""

import json
import subprocess
import sys

import pytest

from fastlm.data import DataError
from fastlm.data.labelled import (
    Answer,
    ChoiceExample,
    Columns,
    SpanExample,
    TaggedExample,
    TextExample,
    find_format,
    format_names,
    label_names,
)
from fastlm.data.labelled.labels import check_dev_labels, check_labels

PAIRS = Columns("premise", "hypothesis", "gold", "key")
RECORDS = [
    {"key": "a", "premise": "It rains.", "hypothesis": 'He said "no', "gold": "yes"},
    {"key": "b", "premise": "Form\ffeed\u2028and\x85more", "hypothesis": "", "gold": "no"},
]


def write(path, text):
    path.write_bytes(text.encode())
    return path


@pytest.fixture(params=["tsv", "csv", "jsonl", "parquet"])
def table(request, tmp_path):
    """Returns the format, and a file that holds RECORDS in it."""
    path, rows = tmp_path / f"pairs.{request.param}", [list(RECORDS[0]), *(list(r.values()) for r in RECORDS)]
    if request.param == "tsv":
        write(path, "\ufeff" + "\r\n".join("\t".join(row) for row in rows))
    elif request.param == "csv":
        quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
        write(path, "\r\n".join(quoted) + "\r\n")
    elif request.param == "jsonl":
        write(path, "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS) + "\n\n")
    else:
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(RECORDS), path)
    return request.param, path


def test_every_table_gives_the_same_examples(table):
    ending, path = table
    examples = find_format(ending, columns=PAIRS).read(path)
    lines = {"jsonl": ["1", "2"], "parquet": ["row 1", "row 2"]}.get(ending, ["2", "3"])
    assert examples == [
        TextExample("a", "It rains.", 'He said "no', "yes", f"{path}:{lines[0]}"),
        TextExample("b", "Form\ffeed\u2028and\x85more", "", "no", f"{path}:{lines[1]}"),
    ]
    assert label_names(examples) == ("no", "yes")


def test_a_row_of_csv_has_the_line_that_it_begins_in(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\n"two\nlines",x\n\n"three,\nmore\nlines",y\n')
    examples = find_format("csv").read(path)
    assert [(e.id, e.text, e.where) for e in examples] == [
        ("0", "two\nlines", f"{path}:2"),
        ("1", "three,\nmore\nlines", f"{path}:5"),
    ]


def test_labels_of_json_are_named_as_json_writes_them(tmp_path):
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": "t", "label": n}) for n in (10, 9, -1)))
    assert label_names(find_format("jsonl").read(path)) == ("-1", "9", "10")
    path = write(tmp_path / "b.jsonl", "\n".join(json.dumps({"text": "t", "label": n}) for n in (True, "true", "10")))
    assert label_names(find_format("jsonl").read(path)) == ("10", "true")


def test_numbers_are_the_labels_of_a_regression(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tlabel\nx\t 2.5\ny\t-1e1\n")
    assert [e.label for e in find_format("tsv", kind="regression").read(path)] == [2.5, -10.0]


def test_a_test_file_needs_no_labels(tmp_path):
    for text in ("text\nx\n", "text\tlabel\nx\t\n"):
        path = write(tmp_path / "a.tsv", text)
        assert find_format("tsv").read(path, labelled=False)[0].label is None
    path = write(tmp_path / "b.tsv", "text\tlabel\nx\tyes\n")
    assert find_format("tsv").read(path, labelled=False)[0].label == "yes"


BAD_TABLES = {
    "tsv empty": ("tsv", "", "a.tsv: a header and rows expected, got an empty file"),
    "tsv header only": ("tsv", "text\tlabel\n", "a.tsv: examples expected, got none"),
    "tsv no text": ("tsv", "sentence\tlabel\nx\t1", 'a.tsv:2: no column "text"; there are sentence, label'),
    "tsv no label": ("tsv", "text\nx", 'a.tsv:2: no column "label"; there are text'),
    "tsv empty label": ("tsv", "text\tlabel\nx\t1\ny\t ", 'a.tsv:3: "label": a label expected, got nothing'),
    "tsv long row": ("tsv", "text\tlabel\nx\ty\tz", "a.tsv:2: 2 columns expected, as in the header, got 3"),
    "tsv repeated": ("tsv", "text\ttext\nx\ty", "a.tsv:1: the header names 'text' twice"),
    "tsv latin-1": ("tsv", b"text\tlabel\nx\t1\n\xe9\t1", "a.tsv:3: UTF-8 text expected, got the byte 0xe9"),
    "csv quotes": ("csv", 'text,label\nx,1\n"y,1\n', "a.csv:3: not a row of CSV"),
    "jsonl broken": ("jsonl", '{"text": "x", "label": 1}\n{"text"', "a.jsonl:2: not JSON"),
    "jsonl no object": ("jsonl", "[1]", r"a.jsonl:1: a JSON object expected, got \[1\]"),
    "jsonl number": ("jsonl", '{"text": 5, "label": 1}', 'a.jsonl:1: "text": a string expected, got 5'),
    "jsonl surrogate": ("jsonl", '{"text": "\\ud800", "label": 1}', 'a.jsonl:1: "text": valid Unicode expected'),
    "parquet text": ("parquet", "no parquet file", "a.parquet: not a parquet file that can be read"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_is_named_with_its_line(tmp_path, case):
    ending, content, message = BAD_TABLES[case]
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        find_format(ending).read(path)


@pytest.mark.parametrize("label", ["five", "nan", "inf"])
def test_a_score_that_is_no_number_is_refused(tmp_path, label):
    path = write(tmp_path / "a.tsv", f"text\tlabel\nx\t1\ny\t{label}\n")
    with pytest.raises(DataError, match=f"a.tsv:3: \"label\": a number expected, got '{label}'"):
        find_format("tsv", kind="regression").read(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"none\.tsv: no such file"):
        find_format("tsv").read(tmp_path / "none.tsv")
    with pytest.raises(DataError, match="a file expected, got a folder"):
        find_format("tsv").read(tmp_path)


def test_json_lines_hold_examples_of_every_kind(tmp_path):
    def read(kind, record, **how):
        path = write(tmp_path / "a.jsonl", json.dumps(record))
        return find_format("jsonl", kind=kind).read(path, **how)[0]

    where = f"{tmp_path / 'a.jsonl'}:1"
    choice = {"context": "c", "choices": ["x", "y"], "label": 1}
    assert read("choice", choice) == ChoiceExample("0", "c", "", ("x", "y"), 1, where)
    span = {"id": "q", "question": "Who?", "context": "Ann came.", "answers": [{"text": "Ann", "answer_start": 0}]}
    assert read("span", span) == SpanExample("q", "Who?", "Ann came.", (Answer("Ann", 0),), False, where)
    assert read("span", span | {"answers": []}).impossible
    tagged = {"words": ["Ann", "came"], "tags": ["I-PER", "O"], "document": 3}
    assert read("tagging", tagged) == TaggedExample("0", ("Ann", "came"), ("B-PER", "O"), 3, where)
    for kind, record in (("choice", choice), ("span", span), ("tagging", tagged)):
        test = {key: value for key, value in record.items() if key not in ("label", "answers", "tags")}
        example = read(kind, test, labelled=False)
        assert [getattr(example, key, None) for key in ("label", "tags")] == [None, None]
        with pytest.raises(DataError, match=r"a\.jsonl:1"):
            read(kind, test)


BAD_RECORDS = {
    "label outside": ("choice", {"context": "c", "choices": ["x", "y"], "label": 2}, "a number from 0 to 1 expected"),
    "label true": ("choice", {"context": "c", "choices": ["x", "y"], "label": True}, "a number from 0 to 1 .* true"),
    "one choice": ("choice", {"context": "c", "choices": ["x"], "label": 0}, "at least two expected, got 1"),
    "a tag too few": ("tagging", {"words": ["a", "b"], "tags": ["O"]}, "a tag per word .* 2 words and 1 tags"),
    "an empty word": ("tagging", {"words": ["a", ""], "tags": ["O", "O"]}, "words expected, got an empty one"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_a_bad_record_is_named(tmp_path, case):
    kind, record, message = BAD_RECORDS[case]
    path = write(tmp_path / "a.jsonl", json.dumps(record))
    with pytest.raises(DataError, match=rf"a\.jsonl:1: .*{message}"):
        find_format("jsonl", kind=kind).read(path)


def test_labels_of_the_dev_file_are_those_of_the_training_file():
    def texts(*labels):
        return [TextExample(str(i), "t", None, label, f"{labels}.tsv:{i + 2}") for i, label in enumerate(labels)]

    train = texts("a", "b", "c")
    check_dev_labels(train, texts("c", "b", "a"), ("a", "b", "c"), pytest.fail)
    with pytest.raises(DataError, match=r"tsv:3: unknown label 'd'; the labels are a, b, c"):
        check_labels(texts("a", "d"), ("a", "b", "c"))
    with pytest.raises(DataError, match=r"tsv:4: the label 'c' is in no example of \('a', 'b'\).tsv"):
        check_dev_labels(train, texts("a", "b"), ("a", "b", "c"), pytest.fail)


def test_tags_of_the_dev_file_are_those_of_the_training_file():
    train = [TaggedExample("0", ("Ann", "came"), ("B-PER", "O"), 0, "train.conll:1")]
    dev, said = [TaggedExample("0", ("came",), ("O",), 0, "dev.conll:1")], []
    check_dev_labels(train, dev, label_names(train), said.append)
    assert said == ["dev.conll: B-PER: no word has this tag, which is in the training file"]
    with pytest.raises(DataError, match=r"train.conll:1: word 1 \('Ann'\): unknown label 'B-PER'"):
        check_labels(train, ("O",))


def test_scores_that_are_all_equal_are_reported():
    def numbers(name, *labels):
        return [TextExample("0", "t", None, label, f"{name}:2") for label in labels]

    said = []
    check_dev_labels(numbers("train.tsv", 1.0, 2.0), numbers("dev.tsv", 3.0), (), pytest.fail)
    check_dev_labels(numbers("train.tsv", 0.0, 0.0), numbers("dev.tsv", 3.0, 2.0), (), said.append)
    assert len(said) == 1 and said[0].startswith("train.tsv: all 2 scores are 0: there is nothing to learn from them")


def test_a_format_is_found_by_any_spelling():
    assert find_format("SST-2").name == "sst2" and find_format("story_cloze").name == "story-cloze"
    assert {find_format(name).name for name in format_names()} == set(format_names())
    for arguments, message in [
        (("glue",), "format: one of cola, .*parquet expected, got 'glue'"),
        (("rte", Columns()), "columns: the format rte has columns of its own"),
        (("rte", None, "choice"), "kind: the format rte is for classification, got 'choice'"),
        (("tsv", None, "choice"), "kind: tsv is for classification and regression; use jsonl for choice"),
        (("jsonl", Columns(), "span"), "columns: the keys of span in jsonl are fixed"),
        (("tsv", None, "ranking"), "kind: one of classification, .* expected, got 'ranking'"),
        (("conll", Columns("word")), "columns: the columns of conll are numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            find_format(arguments[0], columns=arguments[1] if arguments[1:] else None, kind=(*arguments, None, None)[2])


def test_reading_imports_no_large_library(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tlabel\nx\t1\n")
    code = f"""
import pathlib, sys
from fastlm.data.labelled import find_format
find_format("tsv").read(pathlib.Path({str(path)!r}))
print([name for name in ("torch", "numpy", "pyarrow", "sklearn", "scipy") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.parametrize("module", ["pyarrow"])
def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r"pyarrow is not installed: pip install 'fastlm\[parquet\]'"):
        find_format("parquet").read(tmp_path / "a.parquet")
