"""Whole models trained on the kernels: the losses are those of the reference, step by step.

Weights, batches and dropout seeds are the same, so the masks are the same bits, and the losses may differ by rounding
alone, which each update of Adam passes on. One wrong mask or gradient shows at 1e-2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from checks import SHORT, Case, cases
from torch import Tensor, nn

from fastlm import models
from fastlm.train.optim import build_optimizer, clip_global_norm

STEPS, BATCH, LENGTH, PREDICTED, VOCABULARY = 20, 2, 9, 3, 96
# Ten times what rounding was seen to make of losses between 5 and 0.3; bfloat16 has 3 bits fewer than float16.
BOUNDS = {torch.float32: 5e-6, torch.float16: 3e-3, torch.bfloat16: 2.4e-2}


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


def losses(name: str, make_batch: Callable[[torch.Generator], dict[str, Tensor]], case: Case) -> Tensor:
    """The losses of STEPS updates on one batch: (STEPS,) float32; autocast makes activations half where asked to."""
    torch.manual_seed(0)
    model: nn.Module = models.build(replace(models.PRESETS[name], vocab_size=VOCABULARY), case.backend)
    model.to(case.device).train()
    batch = {key: x.to(case.device) for key, x in make_batch(torch.Generator().manual_seed(1)).items()}
    kind = "adamw" if name.startswith("gpt1") else "bert"
    optimizer = build_optimizer(model, kind=kind, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01)
    seen = []
    for _ in range(STEPS):
        with torch.autocast(case.device, dtype=case.dtype, enabled=case.dtype != torch.float32):
            output = model(**batch)
        loss = output if isinstance(output, Tensor) else output.loss
        optimizer.zero_grad()
        loss.backward()
        clip_global_norm(model.parameters(), 1.0)
        optimizer.step()
        seen.append(loss.detach())
    return torch.stack(seen)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "make_batch"), [("gpt1_tiny", causal_batch), ("bert_tiny", masked_batch)], ids=str)
@pytest.mark.parametrize("case", [c for c in cases("attention") if c.values[0].backend != "reference"])
def test_losses_are_the_references(case, name, make_batch):
    reference = losses(name, make_batch, replace(case, backend="reference"))
    actual = losses(name, make_batch, case)
    assert reference[-1] < reference[0] - 0.5, "the model does not learn: nothing is shown"
    difference = (actual - reference).abs().max().item()
    assert difference <= BOUNDS[case.dtype], f"{name} in {SHORT[case.dtype]}: losses differ by {difference:.3g}"
