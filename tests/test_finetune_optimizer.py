"""Fine-tuning's optimizers and rates by layer, against the update rules of the papers' code in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import one_thread
from torch import nn

from fastlm import models
from fastlm.models import PRESETS
from fastlm.recipes.finetune import RECIPES
from fastlm.tasks.base import Group, Task
from fastlm.tasks.groups import layer_groups
from fastlm.train.config import TrainConfig
from fastlm.train.groups import by_rate, rated_groups
from fastlm.train.plan import count_warmup
from fastlm.train.trainer import Plan, Trainer

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")
STEPS, PEAK = 40, 1e-2


class Quadratic(nn.Module):
    """Has a matrix, an embedding-like matrix of another size and a vector, in float64."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        for name, shape in (("matrix", (3, 4)), ("table", (5, 2)), ("vector", (4,))):
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(values))


class Fit(Task):
    """Pulls every parameter towards 1, with another weight in each update."""

    def prepare(self, folder, notify):
        pass

    def dataset(self, split, length, batch_size, seed):
        return self

    batches_per_epoch = 8

    def batch(self, step):
        return {"tokens": torch.zeros(1, 2), "weight": torch.tensor(1.0 + step % 3, dtype=torch.float64)}

    def tokens(self, batch):
        return 2

    def build(self, backend):
        return Quadratic()

    def losses(self, model, batch):
        return (batch["weight"] * sum(((p - 1) ** 2).sum() for p in model.parameters()),)

    def evaluate(self, model, batches):
        return {"loss": 0.0}


def simulate_gpt1(parameters, peak, steps):
    """Simulates opt.py's `adam` with `warmup_linear`, l2 0.01, e 1e-8 and clipping at 1."""
    values = [p.detach().numpy().copy() for p in parameters]
    m, v = ([np.zeros_like(p) for p in values] for _ in range(2))
    for t in range(steps):
        gradients = clipped([2 * (1.0 + t % 3) * (p - 1) for p in values])
        x, w = t / steps, 0.002
        schedule = (x / w if x <= w else 1.0) * (1 - x)
        rate = peak * math.sqrt(1 - 0.999 ** (t + 1)) / (1 - 0.9 ** (t + 1)) * schedule
        for i, g in enumerate(gradients):
            m[i] = 0.9 * m[i] + (1 - 0.9) * g
            v[i] = 0.999 * v[i] + (1 - 0.999) * g * g
            decay = 0.01 * values[i] if values[i].ndim > 1 else 0.0
            values[i] = values[i] - rate * (m[i] / (np.sqrt(v[i]) + 1e-8) + decay)
    return values


def simulate_bert(parameters, peak, steps):
    """Simulates optimization.py: AdamWeightDecayOptimizer, decay 0.01 except on vectors, clipping at 1."""
    values = [p.detach().numpy().copy() for p in parameters]
    m, v = ([np.zeros_like(p) for p in values] for _ in range(2))
    warmup = int(0.1 * steps)
    for t in range(steps):
        gradients = clipped([2 * (1.0 + t % 3) * (p - 1) for p in values])
        rate = peak * (t / warmup if t < warmup else 1 - t / steps)
        for i, g in enumerate(gradients):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g * g
            update = m[i] / (np.sqrt(v[i]) + 1e-6)
            if values[i].ndim > 1:
                update = update + 0.01 * values[i]
            values[i] = values[i] - rate * update
    return values


def clipped(gradients):
    norm = math.sqrt(sum((g * g).sum() for g in gradients))
    return [g * 1.0 / max(norm, 1.0) for g in gradients]


@pytest.mark.parametrize(("name", "simulate"), [("gpt1-paper", simulate_gpt1), ("bert-paper", simulate_bert)])
def test_a_recipe_makes_the_updates_of_the_papers_code(name, simulate):
    config = replace(RECIPES[name].train.with_length(steps=STEPS), learning_rate=PEAK)
    expected = simulate(list(Quadratic().parameters()), PEAK, STEPS)
    plan = Plan(STEPS, count_warmup(config, STEPS), "cpu", "fp32", {})
    with Trainer(Fit(), config, plan) as trainer:
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.update(0)
        assert all(map(torch.equal, before, trainer.model.parameters()))  # the first update has rate 0
        for step in range(1, STEPS):
            trainer.update(step)
        for p, values in zip(trainer.model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach(), torch.from_numpy(values), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_the_fused_optimizer_takes_the_corrected_rate_too(backend):
    """The kernels' optimizer, in float32, against the same simulation."""

    class InFloat32(Fit):
        def build(self, backend):
            return Quadratic().float()

        def batch(self, step):
            return {name: x.float() for name, x in super().batch(step).items()}

    config = replace(RECIPES["gpt1-paper"].train.with_length(steps=6), learning_rate=PEAK)
    expected = simulate_gpt1(list(Quadratic().float().double().parameters()), PEAK, 6)
    with Trainer(InFloat32(), config, Plan(6, count_warmup(config, 6), "cpu", "fp32", {}), backend) as trainer:
        for step in range(6):
            trainer.update(step)
        for p, values in zip(trainer.model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach().double(), torch.from_numpy(values), rtol=1e-5, atol=1e-6)


# Rates by layer -----------------------------------------------------------------------------------------------------


@pytest.fixture
def bert():
    return models.build(PRESETS["bert_tiny"])


def test_depths_are_electras(bert):
    """L = 2 blocks: the embedding is at 0, the blocks at 1 and 2, the pooler at L + 1 and the heads at L + 2."""
    groups = layer_groups(bert, new=("nsp",))
    assert [(g.name, g.depth, g.new) for g in groups] == [
        ("embedding", 0, False),
        ("blocks.0", 1, False),
        ("blocks.1", 2, False),
        ("pooler", 3, False),
        ("mlm", 4, False),
        ("nsp", 4, True),
    ]
    grouped = [id(p) for group in groups for p in group.parameters]
    assert sorted(grouped) == sorted(id(p) for p in bert.parameters())


def test_rates_fall_by_layer_and_new_layers_have_their_own(bert):
    config = TrainConfig(steps=1, layer_decay=0.5, head_rate=10.0)
    rates = {group.name: group.rate for group in rated_groups(layer_groups(bert, new=("nsp",)), config)}
    expected = {"embedding": 1 / 16, "blocks.0": 1 / 8, "blocks.1": 1 / 4, "pooler": 1 / 2, "mlm": 1.0, "nsp": 10.0}
    assert rates == expected


def test_equal_rates_make_one_group_and_frozen_parameters_none(bert):
    bert.embedding.word.requires_grad_(False)
    ((parameters, rate),) = by_rate(rated_groups(layer_groups(bert), TrainConfig(steps=1)))
    assert rate == 1.0
    assert {id(p) for p in parameters} == {id(p) for p in bert.parameters() if p is not bert.embedding.word}


def test_a_shared_layer_has_the_depth_of_its_last_call(bert):
    bert.blocks[1] = bert.blocks[0]
    assert [(g.name, g.depth) for g in layer_groups(bert)][:2] == [("embedding", 0), ("blocks.0", 2)]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layer_decay": 0.9}, "layer_decay: 1 expected, since the parameter groups of this task have no depth"),
        ({"head_rate": 2.0}, "head_rate: 1 expected, since this task has no new layers"),
    ],
)
def test_rates_that_no_group_can_have_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        rated_groups([Group([nn.Parameter(torch.ones(2))])], TrainConfig(steps=1, **options))
