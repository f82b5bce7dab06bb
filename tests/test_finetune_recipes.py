"""The recipes of fine-tuning: the papers' values, the choice by model and task, and their records."""

import json

import pytest

from fastlm._options import option_values
from fastlm.models.configs import PRESETS
from fastlm.recipes import finetune
from fastlm.recipes.finetune import OPTIONS, RECIPES, TASKS, for_model, from_record
from fastlm.run_folder import RunError
from fastlm.train.run import FREE, differences, identity
from fastlm.train.trainer import Plan

PLAN = Plan(1, 0, "cpu", "fp32", {})


def model_folder(folder, content):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(content))
    return str(folder)


def test_the_papers_values():
    bert, gpt1 = RECIPES["bert-paper"].train, RECIPES["gpt1-paper"].train
    for train in (bert, gpt1):
        assert (train.epochs, train.batch_size, train.weight_decay, train.clip) == (3, 32, 0.01, 1.0)
        assert (train.beta1, train.beta2, train.decay, train.bias_correction) == (0.9, 0.999, "linear", False)
    assert (bert.schedule, bert.warmup_fraction) == ("warmup-replaces-decay", 0.1)
    assert (bert.epsilon, bert.rate_correction) == (1e-6, False)
    assert (gpt1.schedule, gpt1.warmup_fraction) == ("warmup-times-decay", 0.002)
    assert (gpt1.epsilon, gpt1.rate_correction, gpt1.learning_rate) == (1e-8, True, 6.25e-5)
    assert RECIPES["gpt1-paper"].labelled.lm_weight == 0.5


def test_squad_and_swag_have_their_own_values(tmp_path):
    start = model_folder(tmp_path / "m", {"model_type": "bert", "max_position_embeddings": 512})
    squad1, squad2, swag = (for_model(start, task) for task in ("squad1", "squad2", "swag"))
    assert (squad1.train.learning_rate, squad1.train.batch_size, squad1.train.epochs) == (5e-5, 32, 3)
    assert (squad2.train.learning_rate, squad2.train.batch_size, squad2.train.epochs) == (5e-5, 48, 2)
    assert (swag.train.learning_rate, swag.train.batch_size, swag.train.epochs) == (2e-5, 16, 3)
    assert squad1.labelled.max_length == squad2.labelled.max_length == 384
    assert (squad1.labelled.max_question, squad1.labelled.doc_stride) == (64, 128)


def test_a_short_context_has_shorter_questions_and_strides(tmp_path):
    labelled = for_model(model_folder(tmp_path / "m", PRESETS["bert_tiny"].to_json()), "squad1").labelled
    assert (labelled.max_length, labelled.max_question, labelled.doc_stride) == (64, 21, 21)


@pytest.mark.parametrize("name", RECIPES)
def test_the_values_of_every_task_are_possible(name):
    for values in TASKS[name].values():
        RECIPES[name].with_options(values)


@pytest.mark.parametrize(
    ("config", "name", "length"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, "bert-paper", 128),
        ({"model_type": "openai-gpt", "n_positions": 512}, "gpt1-paper", 512),
        (PRESETS["gpt1_tiny"].to_json(), "gpt1-paper", 64),
        (PRESETS["bert_tiny"].to_json(), "bert-paper", 64),
    ],
)
def test_the_recipe_is_that_of_the_model_and_no_longer_than_it(tmp_path, config, name, length):
    recipe = for_model(model_folder(tmp_path / "m", config), "sst2")
    assert (recipe.name, recipe.labelled.max_length, recipe.start) == (name, length, str(tmp_path / "m"))
    assert recipe.train.phases == ((1.0, length),)


def test_a_run_folder_is_known_by_its_model(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"format": 2, "plan": None, "made_from": {}}))
    model_folder(tmp_path / "run" / "model", PRESETS["gpt1_tiny"].to_json())
    assert for_model(str(tmp_path / "run"), "sst2").name == "gpt1-paper"


def test_a_model_without_a_recipe_needs_a_name(tmp_path):
    start = model_folder(tmp_path / "m", {"model_type": "t5"})
    with pytest.raises(ValueError, match=r"recipe: one of bert-paper, gpt1-paper expected, got none, .* is 't5'"):
        for_model(start, "sst2")
    assert for_model(start, "sst2", "bert-paper").name == "bert-paper"
    assert for_model("someone/model-of-a-hub", "sst2", "gpt1-paper").start == "someone/model-of-a-hub"
    with pytest.raises(ValueError, match=r"recipe: one of bert-paper, gpt1-paper expected, got 'elmo'"):
        for_model(start, "sst2", "elmo")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(RunError, match=r"start: .* is neither a run nor a model's folder"):
        for_model(str(tmp_path), "sst2")


def test_json_and_back():
    for recipe in RECIPES.values():
        recipe = recipe.with_options({"format": "mrpc", "seed": 3, "warmup": 10, "max_length": 48})
        assert from_record(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_a_length_and_a_warm_up_replace_another_kind():
    train = RECIPES["bert-paper"].with_options({"warmup": 5, "steps": 100}).train
    assert (train.warmup, train.warmup_fraction, train.steps, train.epochs) == (5, None, 100, None)
    train = RECIPES["bert-paper"].with_options({"warmup_fraction": 0.25, "epochs": 4.0}).train
    assert (train.warmup_fraction, train.steps, train.epochs) == (0.25, None, 4.0)


def test_the_longest_input_is_the_length_of_the_training():
    recipe = RECIPES["bert-paper"].with_options({"max_length": 40})
    assert recipe.labelled.max_length == recipe.train.max_length == 40


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layer_decay": 1.5}, "layer_decay: above 0 and at most 1 expected, got 1.5"),
        ({"head_rate": 0.0}, "head_rate: above 0 expected, got 0.0"),
        ({"patience": 0}, "patience: at least 1 expected, got 0"),
        ({"warmup_fraction": 1.5}, "warmup_fraction: at least 0 and at most 1 expected, got 1.5"),
        ({"schedule": "cyclic"}, "schedule: one of warmup-then-decay, .* expected, got 'cyclic'"),
        ({"validation_batches": -1}, "validation_batches: at least 0 expected, got -1"),
        ({"bias_correction": True, "rate_correction": True}, "rate_correction: with it, no bias_correction expected"),
        ({"layers": 3}, "layers: bert-paper has no such option"),
    ],
)
def test_options_that_make_no_sense_are_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        RECIPES["bert-paper"].with_options(options)


OTHERS = {int: 32, float: 0.25, str: "x", type(None): 2.0, bool: None}
SPECIAL = {"kind": "regression", "orders": "both", "batching": "padded", "class_weights": "balanced", "decay": "cosine"}
SPECIAL |= {"schedule": "warmup-then-decay", "warmup_fraction": 0.5, "precision": "bf16", "device": "cpu"}
SPECIAL |= {"backend": "reference", "batch_size": 8, "accumulation": 2, "epochs": 4.0}


@pytest.mark.parametrize("option", [f.name for f in OPTIONS])
def test_what_a_run_is_bound_to(option):
    recipe = RECIPES["bert-paper"]
    sections = (getattr(recipe, section) for section in finetune.SECTIONS)
    value = {name: v for section in sections for name, v in option_values(section).items()}[option]
    other = not value if isinstance(value, bool) else SPECIAL.get(option, OTHERS[type(value)])
    given = {option: other} | ({"rate_correction": False} if option == "bias_correction" else {})
    new, old = recipe.with_options(given).to_json(), recipe.to_json()
    assert new != old
    free = option in FREE
    assert (differences(new, old) == []) == free
    assert (identity(new, PLAN) == identity(old, PLAN)) == free


def test_a_record_from_before_an_option_resumes_with_its_default():
    """Options that came later are left out of the comparison at their default, and named at other values."""
    from fastlm.recipes import RECIPES as PRETRAINING
    from fastlm.train.run import LATER

    record = PRETRAINING["gpt1_tiny"].to_json()
    old = record | {"train": {name: v for name, v in record["train"].items() if name not in LATER}}
    assert len(old["train"]) < len(record["train"])
    assert differences(record, old) == [] and identity(record, PLAN) == identity(old, PLAN)
    changed = PRETRAINING["gpt1_tiny"].with_options({"patience": 2}).to_json()
    assert differences(changed, old) == ["patience (now 2, there None)"]
