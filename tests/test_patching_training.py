"""Patched models train as unpatched ones: under transformers' Trainer, PEFT and DDP."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import transformers
from test_patching import MODELS, assert_close, make, make_batch
from torch import Tensor, nn

import fastlm
from fastlm.patching.swap import Swapped

# The losses of 50 float32 updates differ by less than this fraction; 2.4e-7 was seen.
LOSS_BOUND = 1e-5


def rows(name: str) -> list[dict[str, Tensor]]:
    batches = [make_batch(name, seed) for seed in range(4)]
    return [{key: x[i] for key, x in batch.items()} for batch in batches for i in range(3)]


def trainer_of(model: nn.Module, folder, **options) -> transformers.Trainer:
    options = {"per_device_train_batch_size": 3, "logging_steps": 1, "learning_rate": 1e-3} | options
    arguments = transformers.TrainingArguments(folder, report_to="none", use_cpu=True, seed=3, **options)
    return transformers.Trainer(model, arguments, train_dataset=rows("BertForMaskedLM"))


@pytest.mark.parametrize("steps", [5, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["BertForMaskedLM", "OpenAIGPTLMHeadModel"])
def test_losses_are_the_unpatched_models(name, steps, tmp_path):
    """Trainer passes num_items_in_batch, here the number of the batch's labels."""
    losses = []
    for patched in (False, True):
        model = make(name)
        if patched:
            fastlm.patch(model)
        trainer = trainer_of(model, tmp_path, max_steps=steps, save_strategy="no")
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == steps and len(set(losses[0])) == steps
    print("largest relative difference:", max(abs(a / b - 1) for a, b in zip(*losses, strict=True)))
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=LOSS_BOUND, atol=0)


def test_a_run_of_a_patched_model_resumes(tmp_path):
    """Dropout is on: its seeds come from the generator whose state a checkpoint holds."""
    options = {"max_steps": 6, "save_steps": 3, "save_strategy": "steps"}
    weights = []
    for resumed in (False, True):
        model = make("BertForMaskedLM", hidden_dropout_prob=0.1)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.1
        fastlm.patch(model)
        trainer = trainer_of(model, tmp_path, **options)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3") if resumed else None)
        assert trainer.state.global_step == 6
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("first", ["patch", "adapters"])
def test_low_rank_adapters(first):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    config = peft.LoraConfig(r=2, target_modules=["query", "value", "dense"], lora_dropout=0.0, init_lora_weights=False)
    model, batch = make("BertForMaskedLM").double(), make_batch("BertForMaskedLM")
    expected = peft.get_peft_model(copy.deepcopy(model), config).double().train()
    if first == "patch":
        fastlm.patch(model)
    model = peft.get_peft_model(model, config).double().train()
    model.load_state_dict(expected.state_dict())
    if first == "adapters":
        assert len(fastlm.patch(model).replaced) == MODELS["BertForMaskedLM"][1]
    ours, theirs = (m(**batch).loss for m in (model, expected))
    assert_close(ours, theirs, "loss", 1e-12)
    ours.backward()
    theirs.backward()
    for (path, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) == ("lora_" not in path), path
        if p.grad is not None:
            assert_close(p.grad, q.grad, path, 1e-10)
    assert not any(isinstance(module, Swapped) for module in copy.deepcopy(expected).modules())


@pytest.mark.parametrize("first", ["patch", "ddp"])
def test_a_model_wrapped_by_ddp(first, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        model, batch = make("BertForMaskedLM").double(), make_batch("BertForMaskedLM")
        expected = copy.deepcopy(model)
        if first == "patch":
            fastlm.patch(model)
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        if first == "ddp":
            assert len(fastlm.patch(wrapped).replaced) == MODELS["BertForMaskedLM"][1]
        for m in (wrapped, expected):
            m.train()(**batch).loss.backward()
        for (path, p), q in zip(model.named_parameters(), expected.named_parameters(), strict=True):
            if q[1].grad is not None:
                assert_close(p.grad, q[1].grad, path, 1e-12)
        assert fastlm.unpatch(wrapped).restored == MODELS["BertForMaskedLM"][1]
    finally:
        dist.destroy_process_group()
