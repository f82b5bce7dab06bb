"""The recorded runs of the tiny models are reproduced, with and without a kill: the same losses and weights."""

import json

import pytest
import torch
from recorded_runs import FOLDER, MODELS, OPTIONS, hashes, machine
from runs import configuration, losses, one_thread, run, text
from test_pretrain_resume import run_and_kill

from fastlm import recipes
from fastlm.train.run import NUMERICS

__all__ = ["one_thread", "text"]  # fixtures
pytestmark = pytest.mark.usefixtures("one_thread")

# Other processors and libraries round twelve float32 updates otherwise, so equal bits are required on one machine only.
RELATIVE = 1e-4


def recorded(model):
    record = json.loads((FOLDER / f"{model}.json").read_text())
    if model.startswith("bert") and torch.__version__ < (2, 13):
        pytest.skip(f"torch {torch.__version__} draws other initial weights: trunc_normal_ changed in 2.13")
    assert record["numerics"] == NUMERICS, "the numerics changed: record the runs again (tests/recorded_runs.py)"
    return record


def assert_reproduced(folder, record):
    updates = losses(folder)
    assert len(updates) == len(record["updates"])
    if machine() == record["machine"]:
        assert updates == record["updates"]
        assert hashes(folder) == record["weights"]
        return
    for update, expected in zip(updates, record["updates"], strict=True):
        assert update == pytest.approx(expected, rel=RELATIVE)
    assert hashes(folder).keys() == record["weights"].keys()


@pytest.mark.parametrize("model", MODELS)
def test_a_recorded_run_is_reproduced(tmp_path, text, model):
    record = recorded(model)
    recipe = recipes.from_record(record["recipe"]).with_options({"data": (str(text),)})
    assert recipe == configuration(text, model, **OPTIONS)
    run(recipe, tmp_path / "run")
    assert_reproduced(tmp_path / "run", record)


@pytest.mark.parametrize("model", MODELS)
def test_a_recorded_run_is_reproduced_after_a_kill(tmp_path, text, model):
    folder = tmp_path / "run"
    run_and_kill(text, model, folder, "update", 6, **OPTIONS)
    run(configuration(text, model, **OPTIONS), folder)
    assert_reproduced(folder, recorded(model))
