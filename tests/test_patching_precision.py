"""The accuracy of patched models in float32 and under bfloat16's autocast, on a CPU and on a GPU, by float64."""

from __future__ import annotations

import copy

import pytest
import torch
from test_patching import CAUSAL, LENGTH, MODELS, logits_of, make, make_batch
from torch import Tensor, nn

import fastlm

SIZES = {"hidden_size": 128, "dim": 128, "n_embd": 128, "intermediate_size": 256, "hidden_dim": 256}  # head_dim 32


def make_wide(name: str, **changes) -> nn.Module:
    own = MODELS[name][0].to_dict()
    return make(name, **{key: value for key, value in SIZES.items() if key in own} | changes)


def make_padded_batch(name: str, *, left: bool) -> dict[str, Tensor]:
    """Returns the batch of test_patching; with `left` its sequences end at the last position."""
    batch = make_batch(name)
    if left:
        shifts = LENGTH - batch["attention_mask"].sum(1)
        for key, value in batch.items():
            if value.ndim == 2:
                batch[key] = torch.stack([row.roll(shift.item()) for row, shift in zip(value, shifts, strict=True)])
        if name in CAUSAL:  # the first valid position would be predicted from the padding before it
            batch["labels"][batch["attention_mask"].cumsum(1) < 2] = -100
    return batch


# Models that read position 0, which is padding here, have no left padding.
POOLED = ("BertForPreTraining", "AlbertForPreTraining", "BertForSequenceClassification")
FAST = ("BertForMaskedLM", "GPT2LMHeadModel", "OpenAIGPTLMHeadModel")
CASES = [(name, False) for name in MODELS] + [
    pytest.param(name, True, marks=[] if name in FAST else pytest.mark.slow) for name in MODELS if name not in POOLED
]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# Three times the unpatched model's RMS error, plus this fraction of the values: under autocast our residual stream is
# bfloat16, theirs float32.
ALLOWANCE = {"fp32": 1e-6, "bf16": 1e-3}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ALLOWANCE)
@pytest.mark.parametrize(("name", "left"), CASES)
def test_errors_are_those_of_the_unpatched_model(name, left, precision, device):
    model = make_wide(name).to(device)
    batch = {key: value.to(device) for key, value in make_padded_batch(name, left=left).items()}
    valid = batch["attention_mask"].bool() if name != "BertForSequenceClassification" else slice(None)

    def results(model: nn.Module) -> list[Tensor]:
        autocast = precision == "bf16" and next(model.parameters()).dtype != torch.float64
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            logits = logits_of(model.eval()(**batch))[valid]
            loss = model.train()(**batch).loss
        loss.backward()
        return [logits, loss[None], torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])]

    exact, theirs = results(copy.deepcopy(model).double()), results(copy.deepcopy(model))
    fastlm.patch(model)
    for what, found, other, wanted in zip(("logits", "loss", "gradients"), results(model), theirs, exact, strict=True):
        error, bound = ((x.double() - wanted).square().mean().sqrt().item() for x in (found, other))
        allowed = 3 * bound + ALLOWANCE[precision] * wanted.square().mean().sqrt().item()
        assert error <= allowed, f"{what}: {error}, theirs {bound}"
