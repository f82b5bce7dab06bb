"""Filling the [MASK]s of a text by a BERT from a run folder, and the errors."""

from dataclasses import replace

import pytest
import torch
from corpora import tokenizer

from fastlm import models
from fastlm.inference.fill_mask import fill, fill_mask
from fastlm.run_folder import RunError

WORDS = tokenizer("wordpiece")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Returns a run folder with a random BERT."""
    return save(tmp_path_factory.mktemp("bert"), "bert_tiny", WORDS)


def save(folder, preset, tokens):
    torch.manual_seed(0)
    model = models.build(replace(models.PRESETS[preset], vocab_size=tokens.vocab_size))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    model.save(folder / "model")
    tokens.save(folder / "tokenizer.json")
    (folder / "config.json").write_text('{"format": 1, "config": {}, "plan": null}')
    return folder


@torch.no_grad()
def test_the_likeliest_words_of_each_mask_in_order(bert):
    text = "it is a [MASK] truth, [MASK] acknowledged"
    guesses = fill_mask(bert, text, top=3, device="cpu")
    model = models.load(bert / "model").eval().double()
    ids = [WORDS.id("[CLS]"), *WORDS.encode(text), WORDS.id("[SEP]")]
    places = [i for i, token in enumerate(ids) if token == WORDS.id("[MASK]")]
    hidden = model(torch.tensor([ids])).hidden
    assert len(guesses) == len(places) == 2
    for place, found in zip(places, guesses, strict=True):
        logits = model.logits("mlm", hidden, torch.tensor([[place]]))[0, 0]
        best = logits.softmax(-1).topk(3)
        assert [guess.token for guess in found] == [WORDS.decode([i]) for i in best.indices.tolist()]
        assert [guess.probability for guess in found] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert guesses[0] != guesses[1]


def test_a_model_in_training_fills_without_dropout(bert):
    model = models.load(bert / "model").train()
    ids = [WORDS.id("[CLS]"), *WORDS.encode("a [MASK] walk"), WORDS.id("[SEP]")]
    assert fill(model, WORDS, ids) == fill(model, WORDS, ids)


@pytest.mark.parametrize(
    ("text", "top", "sentence"),
    [
        ("a walk", 5, r"text: at least one \[MASK\] expected, got 'a walk'"),
        ("a [MASK]", 0, "top: at least 1 expected, got 0"),
        ("a [MASK]", 10_000, "top: at most the 600 entries of the vocabulary expected, got 10000"),
        ("[MASK] " * 70, 5, r"text: at most 64 tokens with \[CLS\] and \[SEP\] expected, got 72"),
    ],
)
def test_input_that_makes_no_sense_is_named(bert, text, top, sentence):
    with pytest.raises(ValueError, match=sentence):
        fill_mask(bert, text, top=top, device="cpu")


def test_another_model_is_named(tmp_path):
    save(tmp_path, "gpt1_tiny", tokenizer("bpe"))
    with pytest.raises(RunError, match="holds a GPT1 with 'lm'; a model with 'mlm' is needed"):
        fill_mask(tmp_path, "a [MASK]", device="cpu")
