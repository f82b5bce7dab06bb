"""The best validation is kept, runs stop early, and both are exact after a kill at any point."""

import json
import math
from dataclasses import replace

import pytest
from runs import before_update, losses, one_thread, weights
from test_task_classification import CONFIG, Classification, trunk

from fastlm.device import Placement
from fastlm.run_folder import find_checkpoints
from fastlm.train import loop
from fastlm.train.recorder import Recorder
from fastlm.train.selection import Selection
from fastlm.train.trainer import Plan, Trainer

__all__ = ["one_thread", "trunk"]  # fixtures
pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 20
TRAIN = replace(CONFIG, steps=STEPS, validate_every=3, checkpoint_every=7, keep_best=True)


class ByChance(Classification):
    """Has a score that is a pure function of the weights, but as irregular as a random number."""

    metric_names = {"luck": ("luck", ".3f"), "loss": ("loss", ".3f")}  # noqa: RUF012
    selected_by, score_names = "luck", ("luck",)

    def evaluate(self, model, batches):
        total = model.classes.weight.double().sum().item()
        return super().evaluate(model, batches) | {"luck": math.modf(abs(total) * 1e4)[0]}

    def report(self, trainer, name):
        counts = [[3, 1, 0], [0, 2, 0], [1, 0, 5]]
        return super().report(trainer, name) | {"confusion": {"labels": ["a", "b", "c"], "counts": counts}}


def fine_tune(trunk, folder, notes=None, **options):
    config = replace(TRAIN, **options)
    record = {"record": {"train": {"steps": config.steps}}, "name": "mine"}
    notify = (notes if notes is not None else []).append
    return loop.train(ByChance(trunk), config, Placement("cpu", "fp32"), folder, **record, notify=notify)


def scores(folder):
    return {r["step"]: r["validation_luck"] for r in losses(folder) if "validation_luck" in r}


@pytest.fixture(scope="module")
def whole(trunk, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    fine_tune(trunk, folder)
    return folder


@pytest.fixture(scope="module")
def stopped(trunk, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    fine_tune(trunk, folder, patience=1)
    return folder


def report(folder):
    return json.loads((folder / "report.json").read_text()) | {"training_seconds": 0}


def assert_same(folder, expected):
    assert losses(folder) == losses(expected)
    assert weights(folder) == weights(expected)
    assert report(folder) == report(expected)


def test_the_model_is_that_of_the_best_validation(whole):
    by_step = scores(whole)
    assert list(by_step) == [3, 6, 9, 12, 15, 18, 20]
    best = max(by_step, key=by_step.get)
    assert best != STEPS, "another seed is needed for this test"
    assert report(whole)["best"] == {"metric": "luck", "step": best, "value": by_step[best], "waited": 7 - best // 3}
    kept = find_checkpoints(whole / "checkpoints")
    assert best in {int(path.name.removeprefix("step-")) for path in kept}
    assert weights(whole) == (whole / "checkpoints" / f"step-{best:08d}" / "model" / "model.safetensors").read_bytes()
    assert report(whole)["scores"]["mine"]["luck"] == by_step[best]


def test_pictures_of_scores_and_labels_are_drawn(whole):
    for name in ("loss", "scores", "confusion"):
        assert (whole / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_stops_when_its_patience_ends(whole, stopped):
    """The stopped run has the scores of the whole one, up to the first that is no new best."""
    expected = list(scores(whole).values())
    end = next(i for i, score in enumerate(expected) if i and score <= max(expected[:i]))
    assert list(scores(stopped).values()) == expected[: end + 1]
    assert report(stopped)["steps"] == len(losses(stopped)) == 3 * (end + 1) < STEPS
    assert report(stopped)["best"]["waited"] == 1


class Killed(Exception):
    pass


def die(*ignored):
    raise Killed


@pytest.mark.parametrize("step", [4, 8, 16])
def test_a_kill_at_any_update_changes_nothing(trunk, tmp_path, monkeypatch, whole, step):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        before_update(patch, step, die)
        fine_tune(trunk, tmp_path)
    fine_tune(trunk, tmp_path)
    assert_same(tmp_path, whole)


@pytest.mark.parametrize("patience", [None, 1])
def test_a_kill_between_each_validation_and_its_checkpoint_changes_nothing(
    trunk, tmp_path, monkeypatch, whole, stopped, patience
):
    """Kills the run before every checkpoint in turn; a new best was then seen, but not saved."""
    save, killed = Recorder.save, set()

    def killed_once_per_step(self, *arguments):
        if self.step not in killed:
            killed.add(self.step)
            raise Killed
        return save(self, *arguments)

    monkeypatch.setattr(Recorder, "save", killed_once_per_step)
    while not (tmp_path / "report.json").exists():
        try:
            fine_tune(trunk, tmp_path, patience=patience)
        except Killed:
            continue
    assert len(killed) >= 2
    assert_same(tmp_path, whole if patience is None else stopped)


def test_a_kill_after_the_early_stop_does_not_train_on(trunk, tmp_path, monkeypatch, stopped):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "_finish", die)
        fine_tune(trunk, tmp_path, patience=1)
    notes = []
    before_update(monkeypatch, len(losses(stopped)), die)
    fine_tune(trunk, tmp_path, notes, patience=1)
    assert any(note.startswith("stopped early, at step") for note in notes)
    assert_same(tmp_path, stopped)


def test_the_best_checkpoint_outlives_the_last_two(trunk, tmp_path):
    """Each kept checkpoint names its own best one, so that a run can also go on from the last but one."""
    fine_tune(trunk, tmp_path, checkpoint_every=1)
    kept = find_checkpoints(tmp_path / "checkpoints")
    named = {json.loads((path / "state.json").read_text())["best"]["step"] for path in kept[-2:]}
    assert {int(path.name.removeprefix("step-")) for path in kept} == {STEPS - 1, STEPS} | named


def test_epochs_are_validated_where_they_end(trunk, tmp_path):
    """An epoch has 4 batches: 4 updates, or 2 of two micro-batches."""
    fine_tune(trunk, tmp_path / "a", steps=9, validate_every=100, validate_each_epoch=True)
    assert list(scores(tmp_path / "a")) == [4, 8, 9]
    options = {"steps": 5, "accumulation": 2, "validate_every": 100, "validate_each_epoch": True}
    fine_tune(trunk, tmp_path / "b", **options)
    assert list(scores(tmp_path / "b")) == [2, 4, 5]


@pytest.mark.parametrize(("whole_epochs", "expected"), [(False, [0, 1, 2, 3, 4, 5]), (True, [0, 1, 2, 4, 5, 6])])
def test_whole_epochs_drop_the_last_batch(trunk, monkeypatch, whole_epochs, expected):
    """An epoch of 4 micro-batches holds one update of three; the fourth is dropped, or else begins the next update."""
    config = replace(TRAIN, batch_size=6, accumulation=3, whole_epochs=whole_epochs)
    with Trainer(ByChance(trunk), config, Plan(2, 0, "cpu", "fp32", {})) as trainer:
        asked, dataset = [], trainer.dataset("train", 12)
        batch = dataset.batch
        dataset.batch = lambda step: asked.append(step) or batch(step)
        for step in range(2):
            trainer.update(step)
        assert trainer.ends_epoch(0) == whole_epochs
    assert asked == expected


# The selection itself ----------------------------------------------------------------------------------------------


def follow(values, metric="f1", patience=None):
    selection = Selection(metric, patience, None)
    return selection, [selection.add(step, {metric: value}) for step, value in enumerate(values, 1)]


def test_the_first_of_equal_values_is_the_best_and_nan_never_is():
    selection, better = follow([math.nan, 0.5, 0.5, math.nan, 0.7, 0.6])
    assert better == [False, True, False, False, True, False]
    assert (selection.step, selection.value, selection.waited) == (5, 0.7, 1)
    assert follow([math.nan])[0].step is None


def test_the_lowest_loss_is_the_best():
    assert follow([3.0, 2.0, 2.5], "loss")[0].step == 2


def test_patience_counts_validations_since_the_best_one():
    assert [follow([0.5, 0.4, 0.4][:n], patience=2)[0].is_over for n in (1, 2, 3)] == [False, False, True]
    assert not follow([0.5] + [0.4] * 9)[0].is_over


def test_its_state_is_json():
    selection, _ = follow([0.5, 0.7, 0.6], patience=2)
    again = Selection("f1", 2, json.loads(json.dumps(selection.to_json())))
    assert vars(again) == vars(selection)
