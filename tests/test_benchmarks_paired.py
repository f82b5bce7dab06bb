"""Steps of ours and of theirs are timed in pairs."""

import json

import pytest

from benchmarks import paired
from benchmarks.__main__ import main as benchmarks_main
from benchmarks.models import ModelCase
from fastlm import models


def test_steps_are_timed_in_pairs(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(paired, "TOKENS_OF_TINY", 64)
    options = {"--model": "gpt1_tiny", "--threads": "1", "--dropout": "0.1", "--pairs": "1", "--out": str(tmp_path)}
    assert benchmarks_main(["models", "--beside", "plain", *(text for pair in options.items() for text in pair)]) == 0
    (pair,) = json.loads((tmp_path / "paired.json").read_text())["pairs"]
    assert (pair["model"], pair["shape"], pair["dropout"], pair["threads"]) == ("gpt1_tiny", "1 x 64", 0.1, 1)
    assert pair["ratio"] == pytest.approx(pair["ours_ms"] / pair["theirs_ms"], rel=0.05)  # of the only pair
    assert 0 < pair["products"] < 1
    assert "gpt1_tiny  1 x 64" in capsys.readouterr().out


def test_the_step_of_a_patched_model_is_timed_with_the_number_of_replaced_modules(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(paired, "TOKENS_OF_TINY", 64)
    options = ["--candidate", "patched", "--model", "gpt1_tiny", "--threads", "1", "--dropout", "0.1", "--pairs", "1"]
    assert benchmarks_main(["models", "--beside", "transformers", *options, "--out", str(tmp_path)]) == 0
    (pair,) = json.loads((tmp_path / "paired.json").read_text())["pairs"]
    layers = models.PRESETS["gpt1_tiny"].layers
    assert (pair["candidate"], pair["replaced"]) == ("patched", 3 * layers + 1)  # attention, MLP, block; the loss
    assert "patched beside" in capsys.readouterr().out
    assert benchmarks_main(["models", "--beside", "plain", "--candidate", "transformers"]) == 2
    assert "--candidate takes cpu or patched, not 'transformers'" in capsys.readouterr().err


def test_pairs_need_someone_beside(capsys):
    assert benchmarks_main(["models", "--beside", "nobody", "--model", "gpt1_tiny"]) == 2
    assert "--beside takes plain or transformers, not 'nobody'" in capsys.readouterr().err
    assert benchmarks_main(["models", "--beside", "plain", "--model", "gpt2"]) == 2
    assert "--model takes gpt1, " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmarks_main(["ops", "--beside", "plain"])
    assert "--beside goes with models" in capsys.readouterr().err


def test_pairs_have_the_dropout_that_they_are_given():
    for p in (0.0, 0.25):
        config = ModelCase("bert_tiny", 2, 16, p).config
        assert (config.dropout, config.attention_dropout, config.embedding_dropout) == (p, p, p)
    assert ModelCase("bert_tiny", 2, 16).config.dropout == 0.1
