"""transformers' own tests of models (ModelTesterMixin) pass on patched models, apart from those listed here."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
import transformers
from patched_testers import NONE, SPAN, TESTERS, Tester

import fastlm

FOLDER = "FASTLM_TRANSFORMERS_TESTS"

# Tests that fail on patched models, with the reason.
FAILING = {
    "test_sdpa_can_dispatch_non_composite_models": "the attention implementation is named fastlm, not sdpa",
}
# Tests that fail on unpatched models, too.
FAILING_ANYWAY = {
    "test_generation_tester_mixin_inheritance": "the tests of generation are not in the source distribution",
    "test_inputs_embeds_matches_input_ids": "RoBERTa numbers positions by the padding among its tokens",
}
WITHOUT_SDPA = ("openai_gpt",)
NOT_GENERATING = ("albert", "distilbert")


def expected_failures(name: str) -> set[str]:
    found = set() if name in WITHOUT_SDPA else set(FAILING)
    if name not in NOT_GENERATING:
        found.add("test_generation_tester_mixin_inheritance")
    return found | ({"test_inputs_embeds_matches_input_ids"} if name == "roberta" else set())


@pytest.mark.slow(twin="test_losses_of_every_class_are_the_unpatched_models")
@pytest.mark.parametrize("name", TESTERS)
def test_transformers_own_tests(name, tmp_path):
    if not Path(os.environ.get(FOLDER, "")).joinpath("test_modeling_common.py").is_file() or not os.environ.get(FOLDER):
        pytest.skip(f"{FOLDER} names no folder with transformers' tests: make test-all fetches them")
    if importlib.util.find_spec("parameterized") is None:
        pytest.skip("transformers' tests need parameterized: pip install parameterized")
    assert failures(name, tmp_path) == expected_failures(name)


def failures(name: str, folder: Path) -> set[str]:
    """Runs transformers' tests in their own process and returns the names of those that fail."""
    here, report = Path(__file__).parent, folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--noconftest"]
    command += ["-c", os.devnull, "--rootdir", str(here), f"--junitxml={report}", str(here / "modeling_common.py")]
    done = subprocess.run(
        command, cwd=here, env=os.environ | {"FASTLM_ARCHITECTURE": name}, capture_output=True, text=True
    )
    assert report.is_file(), done.stdout[-2000:] + done.stderr[-2000:]
    cases = list(ElementTree.parse(report).iter("testcase"))
    assert sum(not list(case) for case in cases) > 50, done.stdout[-2000:]
    failed = {case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None}
    (folder / "log").write_text(done.stdout)
    return {text.partition("[")[0].split(" ")[0] for text in failed}


CLASSES = [(name, cls) for name, tester in TESTERS.items() for cls, kind in tester.labels.items() if kind != NONE]


@pytest.mark.parametrize(("name", "cls"), CLASSES)
def test_losses_of_every_class_are_the_unpatched_models(name, cls):
    torch.manual_seed(0)
    tester = Tester(TESTERS[name])
    config, inputs = tester.prepare_config_and_inputs_for_common()
    for key in vars(config):
        if "drop" in key and isinstance(getattr(config, key), float | None):
            setattr(config, key, 0.0)
    config.classifier_dropout = 0.0  # GPT-2's configuration does not have it
    model = getattr(transformers, cls)(config).double().train()
    if TESTERS[name].labels[cls] == SPAN:  # its loss reads the logits of padded positions, too
        inputs["attention_mask"].fill_(1)
    padding = inputs["attention_mask"] == 0
    inputs = tester.completed(inputs, cls, with_labels=True)
    if inputs.get("labels", torch.empty(0)).shape == padding.shape:
        inputs["labels"][padding] = -100
    expected = copy.deepcopy(model)
    assert fastlm.patch(model).replaced
    ours, theirs = (m(**inputs).loss for m in (model, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0, check_dtype=False)
