"""Whole models trained on the kernels: the losses are those of the reference, step by step, and the first gradients.

Weights, batches and dropout seeds are the same, so the masks are the same bits, and the losses may differ by rounding
alone, which each update passes on; other masks make 3e-3 or more. Adam levels out the sizes of gradients, so those of
the first step are compared too: of the float32 ones a tenth that is missing anywhere makes 8e-6 of the norm of all.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from checks import Case, cases
from torch import Tensor, nn

from fastlm import models
from fastlm.train.optim import build_optimizer, clip_and_step

STEPS, BATCH, LENGTH, PREDICTED, VOCABULARY = 20, 2, 9, 3, 96
# Of the losses, which go from 5 to 1, and of a parameter's first gradient, relative to the norm of all: at least
# three times what rounding was seen to make. Other masks would pass bfloat16's bound of the losses, not float16's.
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
    """Updates on one batch: the losses (steps,) and the first gradients; autocast makes activations half."""
    torch.manual_seed(0)
    model: nn.Module = models.build(replace(models.PRESETS[name], vocab_size=VOCABULARY), backend=case.backend)
    model.to(case.device).train()
    batch = {key: x.to(case.device) for key, x in BATCHES[name](torch.Generator().manual_seed(1)).items()}
    corrected = name.startswith("gpt1")
    recipe = {"bias_correction": corrected, "lr": 1e-3 if corrected else 3e-4}  # uncorrected first steps are 3 times lr
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
@pytest.mark.parametrize("case", [c for c in cases("attention") if c.values[0].backend != "reference"])
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
