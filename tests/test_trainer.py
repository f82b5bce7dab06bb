"""One update against plain PyTorch, accumulation, phases, evaluation and the loader."""

import threading

import pytest
import torch
from runs import configuration, one_thread, text

from fastlm.device import find_device
from fastlm.train.schedule import learning_rate
from fastlm.train.trainer import Plan, Trainer, _Loader

__all__ = ["one_thread", "text"]  # fixtures
pytestmark = pytest.mark.usefixtures("one_thread")
MODELS = ("gpt1_tiny", "bert_tiny")


@pytest.fixture(scope="module")
def make(tmp_path_factory, text):
    """Returns a function that makes trainers of a model, all on the same tokenizer and shards."""
    folders = {}

    def trainer(model, **options):
        recipe = configuration(text, model, **options)
        task = recipe.task()
        if model not in folders:
            folders[model] = tmp_path_factory.mktemp(model)
        task.prepare(folders[model], lambda note: None)
        plan = Plan(12, 2, "cpu", recipe.placement.precision, task.identity())
        return Trainer(task, recipe.train, plan, recipe.placement.backend)

    return trainer


@pytest.mark.parametrize("model", MODELS)
def test_updates_are_adam_on_clipped_gradients_of_the_mean_loss(make, model):
    trainer = make(model, dropout=0.0, accumulation=1, phases=((1.0, 32),), bias_correction=True, clip=0.5)
    other = make(model, dropout=0.0, accumulation=1, phases=((1.0, 32),))
    config, dataset = trainer.config, other.dataset("train", 32)
    matrices = [p for p in other.model.parameters() if p.ndim >= 2]
    vectors = [p for p in other.model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=1.0, betas=(config.beta1, config.beta2), eps=config.epsilon)
    for step in range(3):
        update = trainer.update(step)
        loss = other.model(**dataset.batch(step)).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(other.model.parameters(), 0.5)
        rate = learning_rate(step, peak=config.learning_rate, warmup=2, steps=12, decay=config.decay)
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        adam.zero_grad()
        assert update.learning_rate == rate
        assert update.values[0].item() == pytest.approx(loss.item(), rel=1e-5)
        assert update.values[-1].item() == pytest.approx(norm.item(), rel=1e-4) and norm > 0.5
    for p, q in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_parts_of_a_batch_give_the_update_of_the_whole(make, dropout):
    """GPT-1's micro-batches hold the windows of the whole batch; with the same seeds they draw its dropout masks."""
    whole, parts = (make("gpt1_tiny", dropout=dropout, accumulation=n) for n in (1, 4))
    for step in range(2):
        torch.manual_seed(step)  # the seeds of the dropout masks are drawn from torch's generator
        a = whole.update(step)
        torch.manual_seed(step)
        b = parts.update(step)
        torch.testing.assert_close(a.values, b.values, rtol=1e-5, atol=1e-6)
        assert a.tokens == b.tokens
    for p, q in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=2e-5)


def test_sequence_lengths_follow_the_phases(make):
    trainer = make("bert_tiny", accumulation=1)
    lengths = [trainer._load(step)["tokens"].shape[1] for step in range(12)]
    assert lengths == [24] * 6 + [32] * 6
    assert next(trainer.validation_batches(step=0))["tokens"].shape[1] == 24
    assert next(trainer.validation_batches())["tokens"].shape[1] == 32


@pytest.mark.parametrize("model", MODELS)
def test_evaluation_is_without_dropout_and_draws_nothing(make, model):
    trainer = make(model, dropout=0.5)
    before = torch.get_rng_state()
    batches = list(trainer.validation_batches(3))
    first, again = trainer.evaluate(batches), trainer.evaluate(batches)
    assert len(batches) == 3 and first == again
    assert torch.equal(before, torch.get_rng_state())
    assert trainer.model.training is False and trainer.update(0) and trainer.model.training is True


def test_dropout_differs_from_update_to_update(make):
    trainer = make("gpt1_tiny", learning_rate=1e-12, accumulation=1)
    trainer._loader = _Loader(lambda index: trainer._load(0))  # the same batch again and again
    values = {trainer.update(step).values[0].item() for step in range(3)}
    assert len(values) == 3


def test_the_next_batch_is_prepared_meanwhile_and_none_beyond_the_last():
    loaded, threads = [], set()

    def load(index):
        loaded.append(index)
        threads.add(threading.current_thread().name)
        return {"index": index}

    loader = _Loader(load)
    assert [loader.get(i, last=7)["index"] for i in (5, 6, 7)] == [5, 6, 7]
    assert loaded == [5, 6, 7]  # each once: 5 on demand, the others ahead
    assert sum(name.startswith("fastlm-data") for name in threads) == 1


def test_an_error_in_the_data_thread_is_raised_where_the_batch_is_asked_for():
    def load(index):
        if index == 1:
            raise OSError("the shards are gone")
        return {"index": index}

    loader = _Loader(load)
    loader.get(0, last=3)
    with pytest.raises(OSError, match="the shards are gone"):
        loader.get(1, last=3)


def test_devices():
    assert find_device("cpu").type == "cpu"
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
