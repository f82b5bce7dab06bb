"""Patched models on a GPU: one graph, CUDA graphs, and masks with holes. See test_patching_precision.py, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_patching_precision import make_padded_batch, make_wide
from torch import Tensor, nn

import fastlm

pytestmark = pytest.mark.gpu


def make_cuda_batch(name: str) -> dict[str, Tensor]:
    return {key: value.cuda() for key, value in make_padded_batch(name, left=False).items()}


@pytest.mark.parametrize("name", ["BertForMaskedLM", "GPT2LMHeadModel", "OpenAIGPTLMHeadModel"])
def test_compiled_as_one_graph(name):
    model, batch = make_wide(name).cuda().train(), make_cuda_batch(name)
    fastlm.patch(model)
    with torch.autocast("cuda", torch.bfloat16):
        expected = model(**batch).loss
        found = torch.compile(model, fullgraph=True)(**batch).loss
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0.0)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "OpenAIGPTLMHeadModel"])
def test_a_step_in_a_cuda_graph_draws_new_masks_at_each_replay(name):
    model, batch = make_wide(name, hidden_dropout_prob=0.5, resid_pdrop=0.5).cuda().train(), make_cuda_batch(name)
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
