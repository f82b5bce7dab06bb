"""Patched models on a GPU: the accuracy of half precision, padding at the left, one graph, and CUDA graphs."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_patching import CAUSAL, LENGTH, MODELS, logits_of, make, make_batch
from torch import Tensor, nn

import fastlm

pytestmark = pytest.mark.gpu
SIZES = {"hidden_size": 128, "dim": 128, "n_embd": 128, "intermediate_size": 256, "hidden_dim": 256}  # head_dim 32


def make_wide(name: str, **changes) -> nn.Module:
    own = MODELS[name][0].to_dict()
    return make(name, **{key: value for key, value in SIZES.items() if key in own} | changes).cuda()


def make_cuda_batch(name: str, *, left: bool = False) -> dict[str, Tensor]:
    """Returns the batch of test_patching; with `left` its sequences end at the last position."""
    batch = make_batch(name)
    if left:
        shifts = LENGTH - batch["attention_mask"].sum(1)
        for key, value in batch.items():
            if value.ndim == 2:
                batch[key] = torch.stack([row.roll(shift.item()) for row, shift in zip(value, shifts, strict=True)])
    return {key: value.cuda() for key, value in batch.items()}


# Models that read position 0, which is padding here, have no left padding.
POOLED = ("BertForPreTraining", "AlbertForPreTraining", "BertForSequenceClassification")
CASES = [(name, left) for name in MODELS for left in (False, True) if not (left and name in POOLED)]


@pytest.mark.parametrize(("name", "left"), CASES)
def test_half_precision_is_as_near_to_float64_as_the_unpatched_model(name, left):
    """The RMS error of logits and gradients may be three times that of the unpatched model."""
    model, batch = make_wide(name), make_cuda_batch(name, left=left)
    if left and name in CAUSAL:  # the first valid position would be predicted from the padding before it
        batch["labels"][batch["attention_mask"].cumsum(1) < 2] = -100
    valid = batch["attention_mask"].bool() if name != "BertForSequenceClassification" else slice(None)

    def results(model: nn.Module, autocast: bool) -> list[Tensor]:
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            logits = logits_of(model.eval()(**batch))[valid]
            loss = model.train()(**batch).loss
        loss.backward()
        return [logits, loss[None], torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])]

    exact = results(copy.deepcopy(model).double(), False)
    theirs = results(copy.deepcopy(model), True)
    fastlm.patch(model)
    ours = results(model, True)
    for what, found, other, wanted in zip(("logits", "loss", "gradients"), ours, theirs, exact, strict=True):
        error, bound = ((x.double() - wanted).square().mean().sqrt().item() for x in (found, other))
        assert error <= 3 * bound + 1e-3 * wanted.square().mean().sqrt().item(), f"{what}: {error}, theirs {bound}"


@pytest.mark.parametrize("name", ["BertForMaskedLM", "GPT2LMHeadModel", "OpenAIGPTLMHeadModel"])
def test_compiled_as_one_graph(name):
    model, batch = make_wide(name).train(), make_cuda_batch(name)
    fastlm.patch(model)
    with torch.autocast("cuda", torch.bfloat16):
        expected = model(**batch).loss
        found = torch.compile(model, fullgraph=True)(**batch).loss
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0.0)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "OpenAIGPTLMHeadModel"])
def test_a_step_in_a_cuda_graph_draws_new_masks_at_each_replay(name):
    model, batch = make_wide(name, hidden_dropout_prob=0.5, resid_pdrop=0.5).train(), make_cuda_batch(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    fastlm.patch(model)

    def step() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss = model(**batch).loss
        loss.backward()
        return loss.detach()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    losses = []
    for _ in range(3):
        graph.replay()
        losses.append(loss.item())
    assert len(set(losses)) == 3 and all(0 < value < 100 for value in losses), losses


HOLES = """
import torch, fastlm
from test_patching import make
model = make("BertForMaskedLM").cuda().eval()
fastlm.patch(model)
mask = torch.tensor([[1, 0, 1]], device="cuda")
model(torch.ones_like(mask), attention_mask=mask).logits.sum().item()
"""


def test_a_mask_with_holes_is_an_error_of_the_device():
    """In its own process, because the device serves no call after such an error."""
    child = subprocess.run([sys.executable, "-c", HOLES], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert child.returncode != 0 and "device-side assert" in child.stderr, child.stderr
