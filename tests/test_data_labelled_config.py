"""Options of labelled data, and the description of a task."""

import json
import subprocess
import sys

import pytest

from fastlm.data.corpus import DataError
from fastlm.data.labelled.config import LabelledConfig
from fastlm.data.labelled.description import HEADS, TASK_FILE, Description
from fastlm.data.labelled.examples import KINDS


def test_no_torch_is_imported():
    code = "import sys, fastlm.data.labelled.config, fastlm.data.labelled.encode; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_length", 7),
        ("doc_stride", 0),
        ("n_best", 0),
        ("lm_weight", -0.1),
        ("head_dropout", 1.0),
        ("batching", "x"),
    ],
)
def test_a_value_out_of_range_is_named(option, value):
    with pytest.raises(ValueError, match=f"^{option}: .* expected, got {value!r}$"):
        LabelledConfig(**{option: value})


def test_class_weights():
    assert LabelledConfig().parsed_class_weights() is None
    assert LabelledConfig(class_weights="balanced").parsed_class_weights() == {}
    assert LabelledConfig(class_weights="a=b=2,no=0.5").parsed_class_weights() == {"a=b": 2.0, "no": 0.5}
    for wrong in ("a", "a=", "a=x", "a=-1", "a=0", ""):
        with pytest.raises(ValueError, match="^class_weights: "):
            LabelledConfig(class_weights=wrong)


def test_columns():
    assert LabelledConfig().columns() is None
    columns = LabelledConfig(text_column="premise", pair_column="hypothesis").columns()
    assert (columns.text, columns.pair, columns.label) == ("premise", "hypothesis", "label")


def test_a_description_is_read_as_it_was_written(tmp_path):
    assert HEADS.keys() == set(KINDS)
    task = Description("span", ("a", "b"), scores=("squad2_f1",), no_answer=True, null_threshold=-1.5, pairs=False)
    (tmp_path / TASK_FILE).write_text(json.dumps(task.to_json()))
    assert Description.read(tmp_path / TASK_FILE) == task and task.head == "span"
    assert Description.from_json({"kind": "choice"}) == Description("choice")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "the description of a task expected"),
        ("[]", "a JSON object expected, got a list"),
        ("{}", "not the description of a task: missing: kind"),
        ('{"kind": "span", "size": 1}', "unknown: size"),
        ('{"kind": "x"}', "kind: one of classification, .* expected, got 'x'"),
    ],
)
def test_a_damaged_description_is_named(tmp_path, content, message):
    (tmp_path / TASK_FILE).write_text(content)
    with pytest.raises(DataError, match=f"{TASK_FILE}: .*{message}"):
        Description.read(tmp_path / TASK_FILE)
    with pytest.raises(DataError, match=r"none.json: the description of a task expected"):
        Description.read(tmp_path / "none.json")
