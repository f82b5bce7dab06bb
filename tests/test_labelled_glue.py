"""GLUE's own files, with their traps, and the files that its website accepts."""

import pytest

from fastlm.data import DataError
from fastlm.data.labelled import find_format
from fastlm.data.labelled.glue import TASKS

MNLI = "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t" \
    "sentence2_parse\tsentence1\tsentence2"  # fmt: skip
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
MRPC = "#1 ID\t#2 ID\t#1 String\t#2 String"

# {case: (task, file, [(id, text, pair, label)])}
FILES = {
    "cola": ("cola", "gj04\t1\t\tThe cat sat.\nbc01\t0\t*\tSat cat the.\n",
             [("0", "The cat sat.", None, "1"), ("1", "Sat cat the.", None, "0")]),
    "cola test": ("cola", "index\tsentence\n0\tThe cat sat.\n", [("0", "The cat sat.", None, None)]),
    "sst2": ("sst2", "sentence\tlabel\nnearly perfect \t1\n", [("0", "nearly perfect", None, "1")]),
    "sst2 test": ("sst2", "index\tsentence\n7\tnearly perfect .\n", [("7", "nearly perfect .", None, None)]),
    "mrpc": ("mrpc", f'\ufeffQuality\t{MRPC}\r\n1\t11\t12\t" A said .\tB said .\r\n0\t21\t22\tC "\tD\r\n',
             [("0", '" A said .', "B said .", "1"), ("1", 'C "', "D", "0")]),
    "mrpc test": ("mrpc", f"index\t{MRPC}\n5\t11\t12\tA\tB\n", [("5", "A", "B", None)]),
    "stsb": ("stsb", f"{STSB}\tscore\n3\tn\tf\t2012\t1\tnone\tnone\tA plane.\tA jet.\t4.250\n",
             [("3", "A plane.", "A jet.", 4.25)]),
    "stsb test": ("stsb", f"{STSB}\n3\tn\tf\t2012\t1\tnone\tnone\tA plane.\tA jet.\n",
                  [("3", "A plane.", "A jet.", None)]),
    "qqp": ("qqp", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n9\t1\t2\tWhy?\tHow?\t0\n",
            [("9", "Why?", "How?", "0")]),
    "qqp test": ("qqp", "id\tquestion1\tquestion2\n0\tWhy?\tHow?\n", [("0", "Why?", "How?", None)]),
    "mnli": ("mnli", f"{MNLI}\tlabel1\tgold_label\n4\t1\t1n\tfiction\t(\t(\t(\t(\tA.\tB.\tneutral\tneutral\n",
             [("4", "A.", "B.", "neutral")]),
    "mnli dev": ("mnli-mm", f"{MNLI}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
                 "0\t1\t1n\tf\t(\t(\t(\t(\tA.\tB.\ta\tb\tc\td\te\tcontradictory\n",
                 [("0", "A.", "B.", "contradiction")]),
    "mnli test": ("mnli", f"{MNLI}\n0\t1\t1n\tf\t(\t(\t(\t(\tA.\tB.\n", [("0", "A.", "B.", None)]),
    "qnli": ("qnli", "index\tquestion\tsentence\tlabel\n0\tWho?\tAnn.\tnot_entailment\n",
             [("0", "Who?", "Ann.", "not_entailment")]),
    "rte": ("rte", "index\tsentence1\tsentence2\tlabel\n0\tA\tB\tentailment\n", [("0", "A", "B", "entailment")]),
    "wnli": ("wnli", "index\tsentence1\tsentence2\tlabel\n0\tA\tB\t1\n", [("0", "A", "B", "1")]),
    "ax test": ("ax", "index\tsentence1\tsentence2\n0\tA\tB\n", [("0", "A", "B", None)]),
    "ax full": ("ax", "Logic\tPremise\tHypothesis\tLabel\nx\tA\tB\tneutral\n", [("0", "A", "B", "neutral")]),
}  # fmt: skip


def write(tmp_path, text):
    path = tmp_path / "a.tsv"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_each_task_is_read(tmp_path, case):
    task, text, expected = FILES[case]
    labelled = expected[0][3] is not None
    path = write(tmp_path, text)
    examples = find_format(task).read(path, pytest.fail, labelled=labelled)
    assert [example[:4] for example in examples] == expected
    first = 1 if case == "cola" else 2
    assert [example.where for example in examples] == [f"{path}:{first + i}" for i in range(len(expected))]
    if not labelled:
        with pytest.raises(DataError, match=r"a\.tsv:\d: no column"):
            find_format(task).read(path)


def test_short_rows_of_qqp_are_skipped_and_counted(tmp_path):
    rows = [
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "1\t1\t2\tA?\tB?\t1",
        "2\t3\t4\tC?",
        "cut off",
        "3\t5\t6\tD?\t\t0",
    ]
    path, said = write(tmp_path, "\n".join(rows)), []
    examples = find_format("qqp").read(path, said.append)
    assert [(e.id, e.text, e.pair) for e in examples] == [("1", "A?", "B?"), ("3", "D?", "")]
    assert said == [f"{path}: 2 rows with missing columns skipped (first: {path}:3)"]


def test_pairs_without_a_gold_label_are_skipped_and_counted(tmp_path):
    path, said = (
        write(
            tmp_path,
            f"{MNLI}\tgold_label\n"
            + "0\t1\t1n\tf\t(\t(\t(\t(\tA.\tB.\t-\n" * 2
            + "1\t1\t1n\tf\t(\t(\t(\t(\tC.\tD.\tneutral\n",
        ),
        [],
    )
    assert [e.text for e in find_format("mnli").read(path, said.append)] == ["C."]
    assert said == [f'{path}: 2 rows without a gold label ("-") skipped (first: {path}:2)']
    unlabelled = find_format("mnli").read(path, pytest.fail, labelled=False)
    assert [e.label for e in unlabelled] == [None, None, "neutral"]


BAD_FILES = {
    "empty": ("rte", "", "a.tsv: a header and rows expected, got an empty file"),
    "header only": ("rte", "index\tsentence1\tsentence2\tlabel\n", "a.tsv: a header and rows expected, got no rows"),
    "cola columns": ("cola", "sentence\tlabel\n", "a.tsv:1: CoLA's four columns .* got 2 columns"),
    "label": ("rte", "index\tsentence1\tsentence2\tlabel\n0\tA\tB\tneutral",
              "a.tsv:2: unknown label 'neutral'; the labels are entailment, not_entailment"),
    "short row": ("rte", "index\tsentence1\tsentence2\tlabel\n0\tA\tB", "a.tsv:2: 4 columns expected, .* got 3"),
    "score": ("stsb", f"{STSB}\tscore\n3\tn\tf\t2012\t1\tn\tn\tA\tB\thigh", 'a.tsv:2: "score": a number expected'),
    "column": ("mrpc", "Quality\t#1 String\n1\tA", 'a.tsv:1: no column "#2 String"; there are Quality, #1 String'),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named_with_its_line(tmp_path, case):
    task, text, message = BAD_FILES[case]
    with pytest.raises(DataError, match=message):
        find_format(task).read(write(tmp_path, text))


def test_the_labels_have_the_order_of_berts_code():
    assert find_format("mnli").labels == ("contradiction", "entailment", "neutral")
    assert find_format("rte").labels == find_format("qnli").labels == ("entailment", "not_entailment")
    assert find_format("stsb").labels is None and find_format("stsb").kind == "regression"


@pytest.mark.parametrize("task", TASKS)
def test_submissions_have_the_names_and_columns_that_glue_accepts(tmp_path, task):
    names = ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX"]
    made = find_format(task)
    predictions = [made.labels[-1], made.labels[0]] if made.labels else [5.3, -0.1]
    (path,) = made.submission(tmp_path / "out", ["0", "1"], predictions)
    assert path.stem == names[list(TASKS).index(task)] and path.suffix == ".tsv"
    written = predictions if made.labels else ["5.000", "0.000"]
    assert path.read_text() == f"index\tprediction\n0\t{written[0]}\n1\t{written[1]}\n"


def test_a_submission_of_other_labels_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"RTE.tsv: one of entailment, not_entailment expected, got 'neutral'"):
        find_format("rte").submission(tmp_path, ["0"], ["neutral"])
    with pytest.raises(ValueError, match=r"STS-B.tsv: a number expected for the id 0, got nan"):
        find_format("stsb").submission(tmp_path, ["0"], [float("nan")])
    with pytest.raises(ValueError, match=r"RTE.tsv: a prediction per id expected, got 0 for 1 ids"):
        find_format("rte").submission(tmp_path, ["0"], [])
    assert list(tmp_path.iterdir()) == []
