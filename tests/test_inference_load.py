"""Loading a model and its tokenizer from a run folder: what is damaged or of another run is named, or passed over."""

import json
from dataclasses import replace

import pytest
import torch
from corpora import chapters, tokenizer

from fastlm import models
from fastlm.data import train_bpe
from fastlm.inference.fill_mask import fill
from fastlm.inference.generate import continue_tokens, generate
from fastlm.inference.load import load_trained
from fastlm.run_folder import RunError, RunFolder, find_checkpoints
from fastlm.train import checkpoint
from fastlm.train.optim import build_optimizer

WORDS = tokenizer("bpe")
CONFIG = replace(models.PRESETS["gpt1_tiny"], vocab_size=WORDS.vocab_size)


@pytest.fixture
def run(tmp_path):
    """Returns an unfinished run with two checkpoints, at steps 1 and 2; the weights of step n are all n."""
    folder = RunFolder(tmp_path / "run")
    model = models.build(CONFIG)
    optimizer = build_optimizer(
        [(list(model.parameters()), 1.0)], bias_correction=True, lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0
    )
    for step in (1, 2):
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(step)
        checkpoint.save(folder.checkpoints, step, model, optimizer, identity={"run": "run"})
    WORDS.save(folder.tokenizer_file)
    record(folder, {"task": {"tokenizer_hash": WORDS.hash}})
    return folder


def record(folder, plan):
    folder.config_file.write_text(json.dumps({"format": 2, "made_from": None, "plan": plan}))


def step_of(model):
    return model.embedding.word[0, 0].item()


def flip_a_bit(path, name):
    content = bytearray((path / name).read_bytes())
    content[-5] ^= 1
    (path / name).write_bytes(content)


def refuse(sentence):
    pytest.fail(f"there is nothing to say, got {sentence!r}")


def test_the_newest_checkpoint_is_loaded(run):
    model, words = load_trained(run.path, "cpu", notify=refuse)
    assert step_of(model) == 2 and words.hash == WORDS.hash and not model.training


@pytest.mark.parametrize("name", ["model/model.safetensors", "model/config.json", "state.json"])
def test_a_damaged_one_is_named_and_the_one_before_it_is_loaded(run, name):
    newest = find_checkpoints(run.checkpoints)[-1]
    if name == "state.json":
        (newest / name).write_text('{"format": 2, "files": []')
    else:
        flip_a_bit(newest, name)
    notes = []
    assert step_of(load_trained(run.path, "cpu", notify=notes.append)[0]) == 1
    assert len(notes) == 1 and str(newest) in notes[0] and notes[0].endswith("; the older step-00000001 is used")
    with pytest.warns(UserWarning, match="the older step-00000001 is used"):
        load_trained(run.path, "cpu")


def test_what_only_training_reads_may_be_damaged(run):
    flip_a_bit(find_checkpoints(run.checkpoints)[-1], "optimizer.safetensors")
    assert step_of(load_trained(run.path, "cpu", notify=refuse)[0]) == 2


def test_without_an_intact_checkpoint_nothing_is_loaded(run):
    for path in find_checkpoints(run.checkpoints):
        flip_a_bit(path, "model/model.safetensors")
    with pytest.raises(RunError, match=r"step-00000002/model/model.safetensors: damaged: .*no checkpoint of .* intact"):
        load_trained(run.path, "cpu", notify=refuse)


@pytest.mark.parametrize("entries", [WORDS.vocab_size, WORDS.vocab_size - 20])
def test_the_tokenizer_of_another_run_is_refused(run, entries):
    other = train_bpe(chapters()[6:], entries)
    assert other.hash != WORDS.hash
    other.save(run.tokenizer_file)
    with pytest.raises(RunError, match=rf"tokenizer of hash {WORDS.hash[:12]} expected, .* hash {other.hash[:12]}"):
        load_trained(run.path, "cpu")


@pytest.mark.parametrize("plan", [None, {"steps": 2}, {"task": {}}, [], {"task": None}])
def test_without_a_recorded_tokenizer_its_size_is_compared(run, plan):
    record(run, plan)
    assert load_trained(run.path, "cpu")[1].hash == WORDS.hash
    train_bpe(chapters()[:2], WORDS.vocab_size - 20).save(run.tokenizer_file)
    with pytest.raises(RunError, match=rf"tokenizer of {WORDS.vocab_size} entries expected, .* has 580 entries"):
        load_trained(run.path, "cpu")


NO_PROBABILITIES = "model: its logits must be finite numbers, got (nan|inf); its weights are damaged or too large"


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_weights_that_are_too_large_are_named(temperature):
    model = models.build(CONFIG)
    with torch.no_grad():
        model.embedding.word.normal_(std=1e38)
    with pytest.raises(ValueError, match=NO_PROBABILITIES):
        continue_tokens(model, [1, 2], 1, temperature=temperature)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(value):
    words = tokenizer("wordpiece")
    model = models.build(replace(models.PRESETS["bert_tiny"], vocab_size=words.vocab_size))
    with torch.no_grad():
        model.mlm.bias.fill_(value)
    with pytest.raises(ValueError, match=NO_PROBABILITIES):
        fill(model, words, [words.id("[CLS]"), words.id("[MASK]"), words.id("[SEP]")])


def test_damage_is_also_reported_where_text_is_generated(run):
    flip_a_bit(find_checkpoints(run.checkpoints)[-1], "model/model.safetensors")
    notes = []
    assert generate(run.path, "It was", tokens=3, device="cpu", notify=notes.append).startswith("it was")
    assert len(notes) == 1 and "damaged" in notes[0]
