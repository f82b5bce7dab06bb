"""BERT's errors: input, configurations and heads that cannot be get one clear sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastlm import models
from fastlm.models import BERT
from fastlm.nn import NextSentenceHead

TINY = models.PRESETS["bert_tiny"]
TOKENS = torch.zeros(2, 8, dtype=torch.int64)
POSITIONS = torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tokens": TOKENS.int()}, "BERT: tokens must be int64, got int32"),
        ({"tokens": TOKENS.new_zeros(2, 65)}, r"BERT: tokens must be \(B, S\) with 1 <= S <= 64, got shape \(2, 65\)"),
        ({"tokens": TOKENS - 1}, r"BERT: tokens must lie in \[0, 512\), got -1"),
        ({"segments": TOKENS + 2}, r"BERT: segments must lie in \[0, 2\), got 2"),
        ({"segments": TOKENS[0]}, r"BERT: segments must have shape \(2, 8\), got \(8,\)"),
        ({"lengths": torch.tensor([8, 8])}, "BERT: lengths must be int32, got int64"),
        ({"lengths": torch.tensor([8], dtype=torch.int32)}, r"BERT: lengths must have shape \(2,\), got \(1,\)"),
        ({"mlm_positions": POSITIONS}, "BERT: mlm_positions and mlm_targets go together"),
        ({"mlm_targets": POSITIONS}, "BERT: mlm_positions and mlm_targets go together"),
        ({"mlm_positions": POSITIONS[0], "mlm_targets": POSITIONS}, r"BERT: mlm_positions must have shape \(B, P\)"),
        (
            {"mlm_positions": POSITIONS + 8, "mlm_targets": POSITIONS},
            r"BERT: mlm_positions must lie in \[0, 8\), got 8",
        ),
        ({"mlm_positions": POSITIONS, "mlm_targets": POSITIONS + 512}, r"BERT: mlm_targets must lie in \[0, 512\)"),
        ({"next_sentence_labels": torch.tensor([0, 2])}, r"BERT: next_sentence_labels must lie in \[0, 2\)"),
        ({"next_sentence_labels": torch.tensor([0.0, 1.0])}, "BERT: next_sentence_labels must be int64, got float32"),
    ],
)
def test_bad_input_gets_a_sentence(options, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        models.build(TINY)(**{"tokens": TOKENS} | options)


def test_bad_positions_for_logits_get_a_sentence():
    model = models.build(TINY)
    hidden = model(TOKENS).hidden
    with pytest.raises(ValueError, match=r"BERT: positions must lie in \[0, 8\), got 8"):
        model.logits("mlm", hidden, POSITIONS + 8)
    with pytest.raises(ValueError, match=r"BERT: positions must have shape \(2, 3\), got \(1, 3\)"):
        model.logits("mlm", hidden, POSITIONS[:1])


def test_bad_configurations_get_a_sentence():
    with pytest.raises(ValueError, match=r"gelu must be 'tanh' or 'none' \(the exact erf\), got 'gelu'"):
        replace(TINY, gelu="gelu")
    with pytest.raises(TypeError, match="config must be a BERTConfig, got GPT1Config"):
        BERT(models.PRESETS["gpt1_tiny"])


@pytest.mark.parametrize(
    ("heads", "sentence"),
    [
        ({"x": torch.nn.Linear(3, 3)}, "heads: 'x' must be a fastlm.nn.Head, got Linear"),
        ({"a.b": NextSentenceHead(64)}, "heads: a Python name expected for a head, got 'a.b'"),
        ({"": NextSentenceHead(64)}, "heads: a Python name expected for a head, got ''"),
        ({"pooler": NextSentenceHead(64)}, "heads: 'pooler' is an attribute of BERT, so no head can have the name"),
    ],
)
def test_heads_that_cannot_be_are_refused(heads, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        BERT(TINY, heads)
