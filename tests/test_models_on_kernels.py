"""Whole models trained on the kernels and on the reference: the losses of each step and the first gradients agree.

Weights, batches and dropout seeds are the same, so the masks are equal, and the losses differ only by rounding, which
each update carries on. Other masks would change a loss by 3e-3 or more. Adam hides the size of gradients, so the
gradients of the first step are compared too: in float32, a tenth missing from any one changes 8e-6 of their norm.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from checks import Case, long_cases
from torch import Tensor, nn

from fastlm import models
from fastlm.train.optim import build_optimizer, clip_and_step

STEPS, BATCH, LENGTH, PREDICTED, VOCABULARY = 20, 2, 9, 3, 96
# Bounds of the losses, which go from 5 to 1, and of a parameter's first gradient relative to the norm of all gradients:
# at least three times the measured rounding. Wrong masks would pass the loss bound of bfloat16, but not of float16.
BOUNDS = {torch.float32: (5e-6, 1e-6), torch.float16: (2e-3, 1e-3), torch.bfloat16: (1.6e-2, 8e-3)}


def causal_batch(generator: torch.Generator) -> dict[str, Tensor]:
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=generator)
    lengths = torch.tensor([LENGTH, LENGTH - 3], dtype=torch.int32)
    targets = tokens[:, 1:].masked_fill(torch.arange(LENGTH) >= lengths[:, None], -100)
    return {"tokens": tokens[:, :-1], "targets": targets, "lengths": lengths}


def masked_batch(generator: torch.Generator) -> dict[str, Tensor]:
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=generator)
    targets = torch.randint(VOCABULARY, (BATCH, PREDICTED), generator=generator)
    targets[0, -1] = -100
    return {
        "tokens": tokens,
        "segments": (torch.arange(LENGTH) > LENGTH // 2).long().expand(BATCH, -1),
        "lengths": torch.tensor([LENGTH, LENGTH - 3], dtype=torch.int32),
        "mlm_positions": torch.randint(LENGTH - 3, (BATCH, PREDICTED), generator=generator),
        "mlm_targets": targets,
        "next_sentence_labels": torch.randint(2, (BATCH,), generator=generator),
    }


BATCHES = {"gpt1_tiny": causal_batch, "bert_tiny": masked_batch}


def train(name: str, case: Case, steps: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Trains on one batch; returns the losses (steps,) and the first gradients. Half precision comes from autocast."""
    torch.manual_seed(0)
    model: nn.Module = models.build(replace(models.PRESETS[name], vocab_size=VOCABULARY), backend=case.backend)
    model.to(case.device).train()
    batch = {key: x.to(case.device) for key, x in BATCHES[name](torch.Generator().manual_seed(1)).items()}
    corrected = name.startswith("gpt1")
    recipe = {
        "bias_correction": corrected,
        "lr": 1e-3 if corrected else 3e-4,
    }  # without correction the first steps are 3 lr
    recipe |= {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}
    optimizer = build_optimizer([(model.parameters(), 1.0)], **recipe, backend=case.backend)
    losses, gradients = [], {}
    for _ in range(steps):
        with torch.autocast(case.device, dtype=case.dtype, enabled=case.dtype != torch.float32):
            loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        gradients = gradients or {key: p.grad.clone() for key, p in model.named_parameters()}
        clip_and_step(optimizer, 1.0)
        losses.append(loss.detach())
    return torch.stack(losses), gradients


@pytest.mark.parametrize("steps", [2, pytest.param(STEPS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("case", [c for c in long_cases("attention") if c.values[0].backend != "reference"])
def test_training_is_the_references(case, name, steps):
    reference, gradients = train(name, replace(case, backend="reference"), steps)
    losses, actual = train(name, case, steps)
    if steps == STEPS:
        assert reference[-1] < reference[0] - 0.5, "the model does not learn: nothing is shown"
    bound, gradient_bound = BOUNDS[case.dtype]
    difference = (losses - reference).abs().max().item()
    assert difference <= bound, f"losses differ by {difference:.3g}"
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    for key, gradient in gradients.items():
        difference = ((actual[key] - gradient).norm() / norm).item()
        assert difference <= gradient_bound, f"{key}: gradients differ by {difference:.3g} of the norm of all"
