"""transformers' own tests of models, on patched models: run by test_patching_common.py, not by itself.

The environment names the folder of transformers' tests (FASTLM_TRANSFORMERS_TESTS) and an architecture
(FASTLM_ARCHITECTURE). The folder is part of transformers' source distribution, which lacks the tests of single models:
the testers here stand for those.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
import unittest
from pathlib import Path
from typing import Any

import torch
import transformers
from patched_testers import TESTERS, Tester

from fastlm import patching

# What test_modeling_common.py imports, and the source distribution lacks.
LACKING = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}


def load_tests(folder: Path) -> Any:
    """Imports test_modeling_common.py from a folder, with empty classes for what the folder lacks."""
    package = types.ModuleType("transformers_tests")
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    for name, cls in LACKING.items():
        for module in (name.partition(".")[0], name):
            sys.modules[f"{package.__name__}.{module}"] = types.ModuleType(module)
        setattr(sys.modules[f"{package.__name__}.{name}"], cls, type(cls, (), {}))
    return importlib.import_module(f"{package.__name__}.test_modeling_common")


common = load_tests(Path(os.environ["FASTLM_TRANSFORMERS_TESTS"]))
ARCHITECTURE = os.environ["FASTLM_ARCHITECTURE"]


class TestPatched(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = tuple(getattr(transformers, name) for name in TESTERS[ARCHITECTURE].labels)

    @classmethod
    def setUpClass(cls) -> None:
        if os.environ.get("FASTLM_UNPATCHED") != "1":
            getattr(patching, f"apply_fastlm_to_{ARCHITECTURE}")()

    @classmethod
    def tearDownClass(cls) -> None:
        patching.revert(ARCHITECTURE)

    def setUp(self) -> None:
        torch.manual_seed(0)
        self.model_tester = Tester(TESTERS[ARCHITECTURE])

    def _prepare_for_class(self, inputs_dict: dict, model_class: type, return_labels: bool = False) -> dict:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return self.model_tester.completed(inputs, model_class.__name__, return_labels)


del common.ModelTesterMixin  # pytest would collect it
