"""The options of a run: their checks, the papers' presets, and what a resumed run may change."""

from dataclasses import fields, replace

import pytest

from fastlm import models
from fastlm.train.config import FREE, PRETRAIN_PRESETS, PretrainConfig, differences, resolve_model, run_hash

CONFIG = PRETRAIN_PRESETS["gpt1_tiny"]


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("batch_size", 0, "batch_size: at least 1 expected, got 0"),
        ("vocab_size", -5, "vocab_size: at least 1 expected"),
        ("learning_rate", 0.0, "learning_rate: above 0 expected"),
        ("learning_rate", float("nan"), "learning_rate: above 0 expected"),
        ("clip", -1.0, "clip: above 0 expected"),
        ("dropout", 1.0, "dropout: at least 0 and below 1 expected, got 1.0"),
        ("beta2", 1.5, "beta2: at least 0 and below 1 expected"),
        ("warmup", -1, "warmup: at least 0 expected"),
        ("accumulation", 3, "accumulation: a divisor of batch_size 4 expected, got 3"),
        ("validation_fraction", 1.0, "validation_fraction: above 0 and below 1 expected"),
        ("phases", ((0.5, 16),), "phases: fractions that sum to 1 expected, got 0.5"),
        ("phases", ((1.0, 1),), "phases: sequence lengths of at least 2 expected"),
        ("phases", ((2.0, 8), (-1.0, 16)), "phases: fractions of at least 0 expected"),
        ("steps", 0, "steps: above 0 expected"),
        ("minutes", 2.0, r"steps, minutes, epochs: exactly one of them expected, got \['steps', 'minutes'\]"),
        ("optimizer", "sgd", "optimizer: one of adamw, bert expected, got 'sgd'"),
        ("precision", "fp8", "precision: one of auto, fp32, bf16 expected, got 'fp8'"),
        ("seed", -1, r"seed: at least 0 and below 2\^63 expected, got -1"),
    ],
)
def test_options_that_make_no_sense_are_named(option, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(CONFIG, **{option: value})


def test_the_papers_values():
    gpt1, bert = PRETRAIN_PRESETS["gpt1"], PRETRAIN_PRESETS["bert_base"]
    assert (gpt1.learning_rate, gpt1.warmup, gpt1.decay, gpt1.epochs) == (2.5e-4, 2000, "cosine", 100)
    assert (gpt1.batch_size, gpt1.phases, gpt1.optimizer, gpt1.vocab_size) == (64, ((1.0, 512),), "adamw", 40478)
    assert (bert.learning_rate, bert.warmup, bert.decay, bert.steps) == (1e-4, 10_000, "linear", 1_000_000)
    assert (bert.batch_size, bert.phases, bert.optimizer) == (256, ((0.9, 128), (0.1, 512)), "bert")
    assert (bert.epsilon, bert.beta1, bert.beta2, bert.vocab_size) == (1e-6, 0.9, 0.999, 30522)
    for config in (gpt1, bert):
        assert (config.dropout, config.weight_decay, config.clip) == (0.1, 0.01, 1.0)
    large = PRETRAIN_PRESETS["bert_large"]
    assert replace(large, model="bert_base", accumulation=bert.accumulation) == bert


def test_every_preset_is_of_a_model_that_is_long_enough():
    for name, config in PRETRAIN_PRESETS.items():
        assert config.model == name
        assert max(length for _, length in config.phases) <= models.PRESETS[name].context


def test_json_and_back():
    for config in PRETRAIN_PRESETS.values():
        assert PretrainConfig.from_json(config.to_json()) == config


def test_one_length_replaces_another():
    config = CONFIG.with_length(minutes=2.0)
    assert (config.steps, config.minutes, config.epochs) == (None, 2.0, None)


@pytest.mark.parametrize("option", [f.name for f in fields(PretrainConfig)])
def test_what_a_run_is_bound_to(option):
    others = {int: 3, float: 0.25, str: "x", tuple: ("a.txt",), type(None): 2.0}
    value = getattr(CONFIG, option)
    special = {"phases": ((0.5, 16), (0.5, 32)), "document": "file", "optimizer": "bert", "decay": "linear"}
    special |= {"precision": "bf16", "device": "cpu", "backend": "reference", "batch_size": 8, "accumulation": 2}
    lengths = {name: None for name in ("steps", "minutes", "epochs")}
    other = special.get(option, others[type(value)])
    changed = replace(CONFIG, **({**lengths, option: other} if option in lengths else {option: other}))
    free = option in FREE
    assert (differences(changed, CONFIG) == []) == free
    assert (run_hash(changed, {"steps": 1}) == run_hash(CONFIG, {"steps": 1})) == free
    assert run_hash(CONFIG, {"steps": 1}) != run_hash(CONFIG, {"steps": 2})


def test_the_machine_chooses_the_size_of_gpt1_and_bert():
    assert resolve_model("gpt1", cuda=True)[0] == "gpt1" and resolve_model("bert", cuda=True)[0] == "bert_base"
    name, why = resolve_model("gpt1", cuda=False)
    assert name == "gpt1_small" and why.startswith("model gpt1_small, since there is no CUDA device")
    assert resolve_model("bert", cuda=False)[0] == "bert_small"
    for cuda in (True, False):
        assert resolve_model("gpt1_full", cuda=cuda) == ("gpt1", None)
        assert resolve_model("bert_large", cuda=cuda) == ("bert_large", None)
    with pytest.raises(ValueError, match="model: one of gpt1, bert, gpt1_full, bert_base, .* expected, got 'gpt2'"):
        resolve_model("gpt2", cuda=False)
