"""A user's own task: text classification, defined in this file only."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from runs import losses, one_thread
from torch import Tensor, nn

from fastlm import models
from fastlm.device import Placement
from fastlm.models import PRESETS
from fastlm.nn import Head
from fastlm.tasks.base import Group, Task
from fastlm.train import loop, trainer
from fastlm.train.config import TrainConfig

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = 3


class ClassHead(Head, nn.Linear):
    """Predicts the class of a sequence from its pooled state; labels (B,) int64."""

    targets = ("labels",)
    dropout_sites = 0

    def __init__(self, hidden: int):
        super().__init__(hidden, CLASSES)

    def loss(self, model, hidden: Tensor, *, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(model, hidden), labels)

    def logits(self, model, hidden: Tensor) -> Tensor:
        return F.linear(model.pooled(hidden), self.weight, self.bias)


class Examples:
    """Makes sequences whose class is the most frequent of three tokens; batch i is a function of (seed, i)."""

    batches_per_epoch = 4

    def __init__(self, seed: int, length: int, size: int):
        self.seed, self.shape = seed, (size, length)

    def batch(self, step: int) -> dict[str, Tensor]:
        drawn = np.random.default_rng((self.seed, step))
        labels = drawn.integers(CLASSES, size=self.shape[0])
        tokens = drawn.integers(10, 60, size=self.shape)
        tokens[:, 1:4] = 5 + labels[:, None]
        return {"tokens": torch.from_numpy(tokens), "labels": torch.from_numpy(labels)}


class Classification(Task):
    """Fine-tunes the trunk in `folder`, at a tenth of the head's rate."""

    metric_names = {"accuracy": ("accuracy", ".1%")}  # noqa: RUF012

    def __init__(self, folder: Path, *, frozen: tuple[str, ...] = ()):
        self.folder, self.frozen = folder, frozen

    def prepare(self, folder, notify):
        pass

    def dataset(self, split, length, batch_size, seed):
        return Examples(seed + (split == "validation"), length, batch_size)

    def tokens(self, batch):
        return batch["tokens"].numel()

    def build(self, backend):
        model = models.load(self.folder, {"classes": ClassHead(64)}, backend=backend)
        for name in self.frozen:
            model.get_parameter(name).requires_grad_(False)
        return model

    def groups(self, model):
        head = list(model.classes.parameters())
        body = [p for name, p in model.named_parameters() if not name.startswith("classes.")]
        return [Group(body, 0.1), Group(head)]

    def losses(self, model, batch):
        return (model(**batch).loss,)

    def evaluate(self, model, batches):
        right = losses = count = 0
        for batch in batches:
            output = model(**batch)
            losses, count = losses + output.loss.item() * len(batch["labels"]), count + len(batch["labels"])
            right += (model.logits("classes", output.hidden).argmax(-1) == batch["labels"]).sum().item()
        return {"loss": losses / count, "accuracy": right / count}


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """Returns a folder with a random encoder and its pretraining heads."""
    folder = tmp_path_factory.mktemp("trunk")
    torch.manual_seed(1)
    models.build(PRESETS["bert_tiny"]).save(folder)
    return folder


CONFIG = TrainConfig(steps=80, phases=((1.0, 12),), batch_size=8, learning_rate=3e-2, warmup=3, checkpoint_every=10)


def fine_tune(task: Task, folder: Path, config: TrainConfig = CONFIG) -> dict:
    record = {"task": "classification", "train": {"steps": config.steps}}
    return loop.train(task, config, Placement("cpu", "fp32"), folder, record=record, name="mine", notify=lambda _: None)


def test_it_learns_and_reports(trunk, tmp_path):
    result = fine_tune(Classification(trunk), tmp_path)
    assert losses(tmp_path)[0]["loss"] > 0.9 and result["scores"]["mine"]["accuracy"] > 0.9
    assert "accuracy" in (tmp_path / "report.md").read_text()
    model = models.load(tmp_path / "model", {"classes": ClassHead(64)})
    assert model.head_names == ("classes",)


def test_the_body_moves_at_a_tenth_of_the_heads_rate(trunk):
    """Adam's first update moves every parameter by its rate."""
    task = Classification(trunk)
    plan = trainer.Plan(80, 3, "cpu", "fp32", {})
    with trainer.Trainer(task, CONFIG, plan) as made:
        before = {name: p.clone() for name, p in made.model.named_parameters()}
        rate = made.update(0).learning_rate
        moved = {n: (p - before[n]).abs().max().item() for n, p in made.model.named_parameters()}
        assert [group["lr"] for group in made.optimizer.param_groups] == pytest.approx([rate / 10] * 2 + [rate] * 2)
    assert moved["classes.bias"] == pytest.approx(rate, rel=0.01)
    assert moved["blocks.0.mlp.up.bias"] == pytest.approx(rate / 10, rel=0.01)


class Stopped(Exception):
    pass


def stop_at(monkeypatch, number):
    update = trainer.Trainer.update

    def updated(self, step):
        if step == number:
            raise Stopped
        return update(self, step)

    monkeypatch.setattr(trainer.Trainer, "update", updated)


class WithUnusedHead(Classification):
    """Has a second head whose targets are in no batch, so that its parameters never have a gradient."""

    def build(self, backend):
        return models.load(self.folder, {"classes": ClassHead(64), "spare": Spare(64)}, backend=backend)


class Spare(ClassHead):
    targets = ("spare_labels",)


class Shared(Classification):
    """Has one layer that is called twice, with dropout sites for two."""

    def build(self, backend):
        model = super().build(backend)
        model.blocks[1] = model.blocks[0]
        return model


TASKS = {
    "a frozen embedding": lambda folder: Classification(folder, frozen=("embedding.word", "embedding.position")),
    "an unused head": WithUnusedHead,
    "a shared layer": Shared,
}


@pytest.mark.parametrize("kind", TASKS)
def test_it_resumes_exactly(trunk, tmp_path, monkeypatch, kind):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    expected = fine_tune(TASKS[kind](trunk), whole)
    with monkeypatch.context() as patch:
        stop_at(patch, 17)
        with pytest.raises(Stopped):
            fine_tune(TASKS[kind](trunk), folder)
    result = fine_tune(TASKS[kind](trunk), folder)
    assert losses(folder) == losses(whole) and len(losses(folder)) == CONFIG.steps
    assert (folder / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()
    assert result["scores"] == expected["scores"]


def test_a_shared_layer_drops_something_else_at_each_call(trunk):
    model = Shared(trunk).build("auto").train()
    assert model.dropout_sites == 1 + 2 * 3
    assert len(list(model.parameters())) == len({id(p) for p in model.parameters()})
    batch = Examples(0, 12, 8).batch(0)
    seeds = torch.arange(7)
    same = seeds.clone()
    same[4:] = seeds[1:4]  # the second call then draws the masks of the first
    assert not torch.equal(model(**batch, seeds=seeds).hidden, model(**batch, seeds=same).hidden)
