"""The recipes: the papers' values, their options and checks, and the options that a resumed run may change."""

from dataclasses import replace

import pytest

from fastlm import models, recipes
from fastlm._options import option_values
from fastlm.recipes import OPTIONS, RECIPES, from_record, resolve
from fastlm.train.run import FREE, differences, identity
from fastlm.train.trainer import Plan

TINY = RECIPES["gpt1_tiny"]


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("batch_size", 0, "batch_size: at least 1 expected, got 0"),
        ("vocab_size", -5, "vocab_size: at least 1 and below"),
        ("learning_rate", 0.0, "learning_rate: above 0 expected"),
        ("learning_rate", float("nan"), "learning_rate: above 0 expected"),
        ("learning_rate", float("inf"), "learning_rate: a finite number expected, got inf"),
        ("epsilon", float("inf"), "epsilon: a finite number expected, got inf"),
        ("batch_size", 1 << 31, r"batch_size: below 2\^31 expected, got 2147483648"),
        ("vocab_size", 1 << 31, r"vocab_size: at least 1 and below 2\^31 expected"),
        ("context", 10**30, r"context must be an integer of at least 1 and below 2\^31"),
        ("clip", -1.0, "clip: above 0 expected"),
        ("dropout", 1.0, r"^dropout must be in \[0, 1\), got 1.0"),
        ("beta2", 1.5, "beta2: at least 0 and below 1 expected"),
        ("warmup", -1, "warmup: at least 0 expected"),
        ("accumulation", 3, "accumulation: a divisor of batch_size 4 expected, got 3"),
        ("validation_fraction", 1.0, "validation_fraction: above 0 and below 1 expected"),
        ("phases", ((0.5, 16),), "phases: fractions that sum to 1 expected, got 0.5"),
        ("phases", ((1.0, 1),), "phases: sequence lengths of at least 2 expected, got 1.0:1$"),
        ("phases", ((2.0, 8), (-1.0, 16)), "phases: fractions of at least 0 expected"),
        ("phases", ((1.0, 65),), "phases: sequence length 65 is above the 64 of gpt1_tiny; --context 65 makes"),
        ("steps", 0, "steps: a number above 0, and finite, expected"),
        ("minutes", float("inf"), "minutes: a number above 0, and finite, expected, got inf"),
        ("epochs", float("nan"), "epochs: a number above 0, and finite, expected, got nan"),
        ("decay", "steps", "decay: one of cosine, linear expected, got 'steps'"),
        ("document", "page", "document: one of blank-line, file expected, got 'page'"),
        ("precision", "fp8", "precision: one of auto, fp32, bf16 expected, got 'fp8'"),
        ("seed", -1, r"seed: at least 0 and below 2\^63 expected, got -1"),
        ("seed", 1 << 63, r"seed: at least 0 and below 2\^63 expected"),
        ("layers", 0, r"layers must be an integer of at least 1 and below 2\^31, got 0"),
        ("heads", 3, "hidden must be a multiple of heads, got hidden 64 and heads 3"),
        ("segments", 3, "segments: gpt1_tiny has no such option"),
    ],
)
def test_options_that_make_no_sense_are_named(option, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        TINY.with_options({option: value})


def test_one_length_and_no_more():
    with pytest.raises(ValueError, match="exactly one of them expected, got steps and minutes$"):
        TINY.with_options({"steps": 3, "minutes": 2.0})
    train = TINY.with_options({"minutes": 2.0}).train
    assert (train.steps, train.minutes, train.epochs) == (None, 2.0, None) == (None, 2.0, None)
    assert TINY.train.with_length(epochs=2.0) == replace(TINY.train, steps=None, epochs=2.0)


def test_memory_that_is_not_there_is_named_with_what_needs_it():
    assert all(0.92 < c.matrix_weights() / models.parameter_count(c) < 1 for c in models.PRESETS.values())
    weights, activations = 135_168, 2 * (4 * 16) * 2 * (64 + 256)  # 512 x 64 + 64 x 64 + 2 blocks
    assert TINY.model.matrix_weights() == weights
    TINY.check_memory(16 * weights + activations)
    sentence = (
        r"^memory: 135,168 parameters \(vocab_size 512, context 64, layers 2, hidden 64, intermediate 256\) and 4 "
        r"sequences of 16 tokens at a time \(batch_size, accumulation\) need at least 0.0 GiB, and the device has"
    )
    with pytest.raises(ValueError, match=sentence):
        TINY.check_memory(16 * weights + activations - 1)
    RECIPES["bert_tiny"].check_memory(2**30)
    for option in ("segments", "vocab_size", "hidden", "context", "layers", "intermediate", "batch_size"):
        with pytest.raises(ValueError, match=f"^memory: .*{option}"):
            RECIPES["bert_tiny"].with_options({option: 2**31 - 2, "phases": ((1.0, 16),)}).check_memory(2**40)
    half = TINY.with_options({"batch_size": 8, "accumulation": 2})
    assert half.size() == TINY.size()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"segments": 1}, "^segments: for sentence pairs, at least 2 expected, got 1"),
        ({"context": 4}, r"^phases: for pairs, lengths of at least 5 \(.*\) expected, got 4"),
    ],
)
def test_sentence_pairs_that_cannot_be_are_refused_at_the_start(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        RECIPES["bert_tiny"].with_options(options).task()


def test_the_papers_values():
    gpt1, bert = RECIPES["gpt1_full"], RECIPES["bert_base"]
    assert (gpt1.train.learning_rate, gpt1.train.warmup, gpt1.train.decay, gpt1.train.epochs) == (
        2.5e-4,
        2000,
        "cosine",
        100,
    )
    assert (gpt1.train.batch_size, gpt1.train.phases, gpt1.train.bias_correction) == (64, ((1.0, 512),), True)
    assert (bert.train.learning_rate, bert.train.warmup, bert.train.decay, bert.train.steps) == (
        1e-4,
        10_000,
        "linear",
        1_000_000,
    )
    assert (bert.train.batch_size, bert.train.phases) == (256, ((0.9, 128), (0.1, 512)))
    assert (bert.train.epsilon, bert.train.beta1, bert.train.beta2, bert.train.bias_correction) == (
        1e-6,
        0.9,
        0.999,
        False,
    )
    assert (gpt1.corpus.vocab_size, bert.corpus.vocab_size) == (40478, 30522)
    for recipe in (gpt1, bert):
        assert (recipe.model.dropout, recipe.train.weight_decay, recipe.train.clip) == (0.1, 0.01, 1.0)
    large = RECIPES["bert_large"]
    assert large.train == replace(bert.train, accumulation=large.train.accumulation) and large.corpus == bert.corpus
    assert large.model == models.PRESETS["bert_large"]


def test_a_dropout_that_is_not_given_follows_dropout():
    model = TINY.with_options({"dropout": 0.25, "embedding_dropout": 0.5}).model
    assert (model.dropout, model.attention_dropout, model.embedding_dropout) == (0.25, 0.25, 0.5)
    model = TINY.with_options({"attention_dropout": 0.0}).model
    assert (model.dropout, model.attention_dropout, model.embedding_dropout) == (0.1, 0.0, 0.1)


def test_all_positions_of_another_context_are_trained():
    assert TINY.with_options({"context": 48}).train.phases == ((1.0, 48),)
    bert = RECIPES["bert_base"]
    assert bert.with_options({"context": 256}).train.phases == ((0.9, 128), (0.1, 256))
    assert bert.with_options({"context": 64}).train.phases == ((0.9, 64), (0.1, 64))
    assert bert.with_options({"context": 1024, "phases": ((1.0, 512),)}).train.phases == ((1.0, 512),)


def test_every_recipe_is_named_and_its_model_is_long_enough():
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert recipe.train.max_length <= recipe.model.context


def test_json_and_back():
    for recipe in RECIPES.values():
        assert from_record(recipe.to_json()) == recipe


def test_old_names_are_read():
    """config.json of format 1 had other names for models and optimizers."""
    old = {"model": "gpt1", "optimizer": "adamw", "steps": 5, "minutes": None, "epochs": None, "dropout": 0.2}
    assert from_record({"config": old}) == RECIPES["gpt1_full"].with_options({"steps": 5, "dropout": 0.2})
    uncorrected = from_record({"config": {"model": "gpt1_tiny", "optimizer": "bert"}})
    assert uncorrected == TINY.with_options({"bias_correction": False})


OTHERS = {int: 32, float: 0.25, str: "x", tuple: ("a.txt",), type(None): 2.0}
SPECIAL = {"phases": ((0.5, 16), (0.5, 32)), "document": "file", "decay": "cosine", "bias_correction": True}
SPECIAL |= {"precision": "bf16", "device": "cpu", "backend": "reference", "batch_size": 8, "accumulation": 2}
SPECIAL |= {"warmup_fraction": 0.5, "schedule": "warmup-times-decay", "patience": 2}
SPECIAL |= dict.fromkeys(("rate_correction", "whole_epochs", "validate_each_epoch", "keep_best"), True)
SPECIAL |= {"heads": 4, "hidden": 32, "context": 80, "segments": 3, "gelu": "none"}


@pytest.mark.parametrize("option", [f.name for f in OPTIONS])
def test_what_a_run_is_bound_to(option):
    recipe = RECIPES["bert_tiny"]
    values = {name: v for config in (recipe.model, recipe.corpus, recipe.train, recipe.placement)
              for name, v in option_values(config).items()}  # fmt: skip
    value = tuple(values[option]) if isinstance(values[option], list) else values[option]
    changed = recipe.with_options({option: SPECIAL.get(option, OTHERS.get(type(value)))})
    assert changed != recipe
    new, old = changed.to_json(), recipe.to_json()
    free = option in FREE
    assert (differences(new, old) == []) == free
    assert (identity(new, PLAN) == identity(old, PLAN)) == free
    assert identity(old, PLAN) != identity(old, replace(PLAN, steps=2))


PLAN = Plan(1, 0, "cpu", "fp32", {"vocab_size": 5})


def test_free_options_are_those_of_checkpoints():
    assert FREE == ("checkpoint_every", "checkpoint_seconds")


def test_the_machine_chooses_the_size_of_a_family():
    assert resolve("gpt1", cuda=True)[0].name == "gpt1_full" and resolve("bert", cuda=True)[0].name == "bert_base"
    recipe, why = resolve("gpt1", cuda=False)
    assert recipe.name == "gpt1_small" and why.startswith("model gpt1_small, since there is no CUDA device")
    assert resolve("bert", cuda=False)[0].name == "bert_small"
    for cuda in (True, False):
        assert resolve("gpt1_full", cuda=cuda) == (RECIPES["gpt1_full"], None)
        assert resolve("bert_large", cuda=cuda) == (RECIPES["bert_large"], None)
    with pytest.raises(ValueError, match="model: one of gpt1, bert, bert_base, .* expected, got 'gpt2'"):
        resolve("gpt2", cuda=False)
    assert recipes.DEFAULT in recipes.FAMILIES


@pytest.mark.parametrize("name", recipes.FAMILIES)
def test_a_family_s_size_fits_the_machine(name):
    _, small, mini = recipes.FAMILIES[name]
    fast, _ = recipes.fitting(name, None, 150e9)
    slow, why = recipes.fitting(name, None, 15e9)
    assert (fast.name, slow.name) == (small, mini)
    assert why.startswith(f"model {mini}: about ") and f"({small} would make fewer than 300)" in why
    assert recipes.fitting(name, 60.0, 15e9)[0].name == small  # which has the time
    assert recipes.fitting(name, 0.01, 1e9)[0].name == mini  # there is no smaller one


def test_updates_are_counted_in_operations():
    recipe = RECIPES["gpt1_mini"]
    assert recipe.update_flops() == 8 * 64 * recipe.model.flops_per_token(64)
    expected = round(60 * 2 * recipes.STEP_RATE * 1e9 / recipe.update_flops())
    assert f"about {expected} updates in 2 minutes at 1 GFLOP/s" in recipes.fitting("gpt1", 2.0, 1e9)[1]


def test_options_that_say_how_large_a_run_is():
    assert recipes.leaves_size_open({"minutes": 3.0, "seed": 1, "data": ("a.txt",), "learning_rate": 1e-3})
    for option in ("layers", "hidden", "vocab_size", "steps", "epochs", "phases", "batch_size"):
        assert not recipes.leaves_size_open({option: 1})
