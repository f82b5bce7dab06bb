"""The benchmarks of labelled data: feeding, and fine-tuning beside transformers. No test here depends on times."""

import dataclasses
import json

import pytest
from test_benchmarks import bench, record

from benchmarks import finetuning, report
from benchmarks.__main__ import main as benchmarks_main
from benchmarks.feeding import feeding_cases, run_feeding
from benchmarks.grid import Grid


@pytest.mark.parametrize("case", feeding_cases(Grid(tokens=512, small=True)), ids=lambda case: case.kind)
def test_feeding_counts_examples_and_tokens(case):
    """Both passes handle the same tokens per example, and so does the H100 beside them."""
    case = dataclasses.replace(case, examples=64)
    encode, batch = run_feeding(case, bench())
    for one in (encode, batch):
        one.check()
        assert one.parameters["h100_us"] > 0
    assert encode.parameters["examples"] == 64
    for of_one in (lambda r: r.tokens, lambda r: r.parameters["h100_us"]):
        per_example = [of_one(r) / r.parameters["examples"] for r in (encode, batch)]
        assert per_example[0] == pytest.approx(per_example[1], rel=0.02)


def test_the_table_of_feeding():
    """32 examples in 4 us are 8 million per second; an H100 that needs 2 us for them takes 16 million."""
    values = {"kind": "feeding", "name": "feeding", "pass_": "batch", "tokens": 320, "samples_us": (4.0,)}
    values |= {"parameters": {"examples": 32, "h100_us": 2.0}, "lower_bound_us": None, "bound": None}
    header, (row,) = report.table([record(**values)])
    assert header[:2] == ["shape", "pass"] and row[4:] == ["8,000,000", "80,000,000", "16,000,000"]


@pytest.mark.parametrize("name", ["bert_tiny", "gpt1_tiny"])
def test_fine_tuning_is_timed_beside_transformers(name, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning, "ROUNDS", 1)
    sizes = {"--batch": "2", "--updates": "1", "--out": str(tmp_path)}
    given = ["finetuning", "--model", name, *(text for pair in sizes.items() for text in pair)]
    assert benchmarks_main(given) == 0
    (pair,) = json.loads((tmp_path / "finetuning.json").read_text())["pairs"]
    assert (pair["model"], pair["batch"]) == (name, 2)
    assert pair["ratio"] == pytest.approx(pair["theirs"] / pair["ours"], rel=0.1)  # of the only round
    assert f"{name}  2 " in capsys.readouterr().out


def test_another_loss_is_refused_a_timing(tmp_path, monkeypatch):
    load = finetuning._load

    def with_another_bias(folder):
        model = load(folder)
        model.classifier.bias.data[0] += 0.1
        return model

    monkeypatch.setattr(finetuning, "_load", with_another_bias)
    with pytest.raises(ValueError, match=r"the loss of fastlm's model is 0\.\d+, that of transformers' 0\.\d+"):
        benchmarks_main(["finetuning", "--model", "bert_tiny", "--batch", "2", "--updates", "1"])


def test_an_unknown_model_is_refused(capsys):
    assert benchmarks_main(["finetuning", "--model", "gpt2"]) == 2
    assert "--model takes gpt1, " in capsys.readouterr().err
