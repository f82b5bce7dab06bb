"""`fastlm convert`'s work: runs and models for transformers and back, and loading a model from either."""

from __future__ import annotations

from pathlib import Path

import corpora
import pytest
import torch
import transformers

from fastlm.data import DataError
from fastlm.data.labelled.description import Description
from fastlm.data.labelled.examples import TaggedExample
from fastlm.files import write_json
from fastlm.inference.convert import convert
from fastlm.inference.heads import task_head
from fastlm.inference.load import load_pretrained, read_task
from fastlm.inference.predict import Predictor
from fastlm.models import BERT, BERTConfig, Model, pretraining_heads

SIZES = BERTConfig(vocab_size=600, context=24, layers=2, hidden=32, heads=2, intermediate=64)
TASK = Description("tagging", ("O", "B-LOC", "I-LOC"), format="conll", scores=("f1",), max_length=20)


def saved(folder: Path, task: Description | None, **heads) -> Model:
    """Writes a fastlm model's folder with its tokenizer and task.json."""
    own = {} if task is None else {task.head: task_head(task, SIZES.hidden)}
    model = BERT(SIZES, heads | own)
    model.save(folder)
    corpora.tokenizer("wordpiece").save(folder / "tokenizer.json")
    if task is not None:
        write_json(folder / "task.json", task.to_json())
    return model.eval()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_model_goes_to_transformers_and_comes_back_the_same(tmp_path):
    ours = saved(tmp_path / "ours", None, **pretraining_heads(SIZES))
    lines = convert(tmp_path / "ours", tmp_path / "theirs")
    assert lines == [f"{tmp_path / 'theirs'}: transformers' BertForPreTraining, with its tokenizer"]
    assert names(tmp_path / "theirs") == {
        "config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
    lines = convert(tmp_path / "theirs", tmp_path / "back")
    assert lines == [f"{tmp_path / 'back'}: a fastlm BERT with mlm, nsp"]
    for name in names(tmp_path / "ours"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes(), name
    for folder in ("ours", "theirs", "back"):
        model, tokenizer = load_pretrained(tmp_path / folder)
        assert not model.training and tokenizer.hash == corpora.tokenizer("wordpiece").hash
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), ours.parameters(), strict=True))


def test_a_fine_tuned_model_keeps_its_task(tmp_path):
    ours = saved(tmp_path / "ours", TASK)
    lines = convert(tmp_path / "ours", tmp_path / "theirs")
    assert lines[1:] == ["left out: the pooler, which BertForTokenClassification does not have"]
    read = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "theirs")
    assert read.config.id2label == {0: "O", 1: "B-LOC", 2: "I-LOC"}
    lines = convert(tmp_path / "theirs", tmp_path / "back")
    assert lines[1:] == ["freshly initialised, as the source has no such tensors: pooler.weight, pooler.bias"]
    for folder in ("ours", "theirs", "back"):
        assert read_task(tmp_path / folder) == TASK
        model, _ = load_pretrained(tmp_path / folder)
        assert model.head_names == ("tags",) and torch.equal(model.tags.weight, ours.tags.weight)


def test_predictions_are_the_same_before_and_after(tmp_path):
    words = TaggedExample("0", ("it", "was", "late", "in", "hartfield"), None, 0, "x")
    saved(tmp_path / "ours", TASK)
    convert(tmp_path / "ours", tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "back")
    first, *others = (list(Predictor.load(tmp_path / name).predict([words])) for name in ("ours", "theirs", "back"))
    assert others == [first, first] and len(first[0]["tags"]) == 5


def test_a_fine_tuned_model_is_saved_again_with_its_task(tmp_path):
    saved(tmp_path / "ours", TASK)
    load_pretrained(tmp_path / "ours")[0].save(tmp_path / "again")
    assert (tmp_path / "again/task.json").read_bytes() == (tmp_path / "ours/task.json").read_bytes()


def test_what_is_asked_for_is_left_out_and_said(tmp_path):
    saved(tmp_path / "ours", TASK, **pretraining_heads(SIZES))
    with pytest.raises(ValueError, match="no bert class with 'mlm' .* only fastlm loads such a model"):
        convert(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
    lines = convert(tmp_path / "ours", tmp_path / "theirs", drop=["tags"])
    assert lines == [
        f"{tmp_path / 'theirs'}: transformers' BertForPreTraining, with its tokenizer",
        "left out: the head tags",
    ]
    lines = convert(tmp_path / "theirs", tmp_path / "back", drop=["cls.seq_relationship"])
    assert lines[1:] == ["left out: cls.seq_relationship.bias, cls.seq_relationship.weight"]
    assert read_task(tmp_path / "back") is None and load_pretrained(tmp_path / "back")[0].head_names == ("mlm",)
    with pytest.raises(ValueError, match=r"drop: a head of .*back expected \(mlm\), got 'nsp'"):
        load_pretrained(tmp_path / "back", drop=["nsp"])


def test_a_folder_that_holds_files_is_not_written_over(tmp_path):
    saved(tmp_path / "ours", TASK)
    with pytest.raises(ValueError, match=r"target: a new or empty folder expected, got .*ours, which holds files"):
        convert(tmp_path / "ours", tmp_path / "ours")
    (tmp_path / "empty").mkdir()
    convert(tmp_path / "ours", tmp_path / "empty")
    assert "model.safetensors" in names(tmp_path / "empty")


def test_given_heads_of_tasks_are_fresh_and_others_are_read(tmp_path):
    ours = saved(tmp_path / "ours", TASK, **pretraining_heads(SIZES))
    heads = {"mlm": pretraining_heads(SIZES)["mlm"], "tags": task_head(TASK, SIZES.hidden)}
    model, _ = load_pretrained(tmp_path / "ours", heads)
    assert model.head_names == ("mlm", "tags") and torch.equal(model.mlm.dense.weight, ours.mlm.dense.weight)
    assert not torch.equal(model.tags.weight, ours.tags.weight) and model.tags.weight.std() > 0


def test_a_tokenizer_beside_the_folder_is_found_and_a_missing_one_named(tmp_path):
    saved(tmp_path / "run/model", TASK)
    (tmp_path / "run/model/tokenizer.json").rename(tmp_path / "run/tokenizer.json")
    assert load_pretrained(tmp_path / "run/model")[1].vocab_size == 600
    (tmp_path / "run/tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"run/model/tokenizer\.json: no such tokenizer file"):
        load_pretrained(tmp_path / "run/model")
    transformers.BertModel(transformers.BertConfig(num_hidden_layers=1, hidden_size=24)).save_pretrained(
        tmp_path / "hf"
    )
    with pytest.raises(DataError, match=r"hf: a tokenizer\.json, a vocab\.txt, or a vocab\.json with merges\.txt"):
        load_pretrained(tmp_path / "hf")


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": "poetry"}', '{"labels": []}'])
def test_a_damaged_task_file_is_named(content, tmp_path):
    saved(tmp_path / "ours", TASK)
    (tmp_path / "ours/task.json").write_text(content)
    with pytest.raises(DataError, match=r"task\.json: ") as error:
        read_task(tmp_path / "ours")
    assert "\n" not in str(error.value)
