"""apply_fastlm_to_bert and its like: models made afterwards are patched, and no others."""

from __future__ import annotations

import pytest
import torch
from test_patching import MODELS, make, make_batch
from transformers import AutoModelForMaskedLM

import fastlm
from fastlm import patching
from fastlm.patching.swap import Swapped
from fastlm.patching.transformers.tables import ARCHITECTURES

FIRST = {
    "albert": "AlbertForPreTraining",
    "bert": "BertForPreTraining",
    "distilbert": "DistilBertForMaskedLM",
    "electra": "ElectraForMaskedLM",
    "gpt2": "GPT2LMHeadModel",
    "openai_gpt": "OpenAIGPTLMHeadModel",
    "roberta": "RobertaForMaskedLM",
}


@pytest.fixture(autouse=True)
def reverted():
    yield
    for name in ARCHITECTURES:
        patching.revert(name)


def replaced(model: torch.nn.Module) -> int:
    return sum(isinstance(module, Swapped) for module in model.modules())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_made_afterwards_are_patched(name):
    cls = FIRST[name]
    before = make(cls)
    getattr(patching, f"apply_fastlm_to_{name}")()
    model = make(cls)
    assert replaced(model) == MODELS[cls][1] and replaced(before) == 0
    model.train()(**make_batch(cls)).loss.backward()
    patching.revert(name)
    assert replaced(make(cls)) == 0
    assert fastlm.unpatch(model).restored == MODELS[cls][1] and replaced(model) == 0


def test_auto_classes_load_patched_models(tmp_path):
    saved, batch = make("BertForMaskedLM").eval(), make_batch("BertForMaskedLM")
    saved.save_pretrained(tmp_path)
    patching.apply_fastlm_to_bert(loss=False)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert replaced(model) == MODELS["BertForMaskedLM"][1] - 1
    assert model.config is model.bert.config and model.config._attn_implementation == "fastlm"
    valid = batch["attention_mask"].bool()
    torch.testing.assert_close(model(**batch).logits[valid], saved(**batch).logits[valid], rtol=0, atol=1e-5)


def test_options_are_checked_at_once():
    with pytest.raises(ValueError, match="backend must be one of"):
        patching.apply_fastlm_to_bert(backend="rocm")
