"""New tokens for a trained model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from runs import one_thread

from fastlm import models
from fastlm.nn import SequenceLMHead

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")
TOKENS = torch.arange(12).view(2, 6)


@pytest.mark.parametrize("preset", ["gpt1_tiny", "bert_tiny"])
def test_old_tokens_keep_their_states_and_new_ones_are_drawn(preset):
    torch.manual_seed(0)
    model = models.build(replace(models.PRESETS[preset], initializer_range=0.05)).eval()
    before, word = model(TOKENS).hidden, model.embedding.word.clone()
    assert models.grow_vocabulary(model, 300) == range(512, 812)
    assert model.config.vocab_size == 812 and model.embedding.word.shape == (812, 64)
    assert torch.equal(model.embedding.word[:512], word) and torch.equal(model(TOKENS).hidden, before)
    fresh = model.embedding.word[512:]
    truncated = preset == "bert_tiny"
    assert (fresh.abs().max() <= 0.1) == truncated
    assert fresh.std().item() == pytest.approx(0.05 * (0.8796 if truncated else 1.0), rel=0.03)
    assert isinstance(model.embedding.word, torch.nn.Parameter) and model.embedding.word.requires_grad


def test_new_tokens_are_read_and_predicted_and_saved(tmp_path):
    model = models.load(_saved(tmp_path, "gpt1_tiny"), {"lm": SequenceLMHead()})
    start, delimiter, extract = models.grow_vocabulary(model, 3)
    tokens = torch.tensor([[start, 5, delimiter, 6, extract]])
    model(tokens, targets=tokens.roll(-1, 1)).loss.backward()
    assert (model.embedding.word.grad[[start, delimiter, extract]].norm(dim=1) > 0).all()
    model.eval().save(tmp_path / "grown")
    loaded = models.load(tmp_path / "grown").eval()
    assert torch.equal(loaded(tokens).hidden, model(tokens).hidden)
    assert loaded.logits("lm", loaded(tokens).hidden).shape == (1, 5, 515)


def test_the_masked_head_gets_a_bias_per_new_token():
    model = models.build(models.PRESETS["bert_tiny"])
    models.grow_vocabulary(model, 2)
    assert model.mlm.bias.shape == (514,) and not model.mlm.bias[512:].any() and model.mlm.bias.requires_grad
    positions = torch.zeros(2, 1, dtype=torch.int64)
    model(TOKENS, mlm_positions=positions, mlm_targets=positions + 513).loss.backward()
    assert model.mlm.bias.grad[513] < 0


@pytest.mark.parametrize("count", [0, -1, 1.0, True])
def test_a_bad_count_gets_a_sentence(count):
    with pytest.raises(ValueError, match="count must be an integer of at least 1"):
        models.grow_vocabulary(models.build(models.PRESETS["gpt1_tiny"]), count)


def _saved(folder, preset):
    models.build(models.PRESETS[preset]).save(folder / "saved")
    return folder / "saved"
