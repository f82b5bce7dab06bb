"""Finds and loads transformers' common tests of models, and says with which small models they run.

The tests are `ModelTesterMixin` of `tests/test_modeling_common.py`. transformers' wheel does not hold the file, its
source distribution does. `python -P tests/mixin.py` downloads the one of the installed version into build/.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import tarfile
import types
import unittest
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
import transformers

BUILD = Path(__file__).parent.parent / "build"
FILE = "tests/test_modeling_common.py"
VARIABLE = "FASTLM_TRANSFORMERS_SOURCES"  # an environment variable: the folder of transformers' sources
PACKAGE = "transformers_tests"
# Files that the source distribution lacks, and the class that the mixin's file takes from each.
ABSENT = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}

VOCABULARY, BATCH, LENGTH = 99, 3, 7
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
}
GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
ENDS = {"bos_token_id": VOCABULARY - 1, "eos_token_id": VOCABULARY - 1, "pad_token_id": VOCABULARY - 1}
TASKS = ("ForMultipleChoice", "ForQuestionAnswering", "ForSequenceClassification", "ForTokenClassification")


class Family(NamedTuple):
    """Holds a configuration's class and its options, and the classes of models that are made of it.

    switches: attributes of the mixin that turn tests on.
    """

    config: str
    options: dict
    models: tuple[str, ...]
    switches: Mapping[str, bool] = MappingProxyType({})


FAMILIES = {
    "albert": Family(
        "AlbertConfig",
        SIZES | {"embedding_size": 16},
        ("AlbertModel", "AlbertForMaskedLM", "AlbertForPreTraining", *(f"Albert{task}" for task in TASKS)),
    ),
    "bert": Family(
        "BertConfig",
        SIZES,
        ("BertModel", "BertLMHeadModel", "BertForMaskedLM", "BertForPreTraining", "BertForNextSentencePrediction",
         *(f"Bert{task}" for task in TASKS)),
    ),
    "distilbert": Family(
        "DistilBertConfig",
        {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 37,
         "max_position_embeddings": 64},
        ("DistilBertModel", "DistilBertForMaskedLM", *(f"DistilBert{task}" for task in TASKS)),
        {"test_resize_position_embeddings": True},
    ),
    "electra": Family(
        "ElectraConfig",
        SIZES | {"embedding_size": 16},
        ("ElectraModel", "ElectraForCausalLM", "ElectraForMaskedLM", "ElectraForPreTraining",
         *(f"Electra{task}" for task in TASKS)),
    ),
    "gpt2": Family(
        "GPT2Config",
        GPT | ENDS,
        ("GPT2Model", "GPT2LMHeadModel", "GPT2ForQuestionAnswering", "GPT2ForSequenceClassification",
         "GPT2ForTokenClassification"),
    ),
    "openai_gpt": Family(
        "OpenAIGPTConfig",
        GPT | {"pad_token_id": VOCABULARY - 1},
        ("OpenAIGPTModel", "OpenAIGPTLMHeadModel", "OpenAIGPTForSequenceClassification"),
    ),
    "roberta": Family(
        "RobertaConfig",
        SIZES,
        ("RobertaModel", "RobertaForCausalLM", "RobertaForMaskedLM", *(f"Roberta{task}" for task in TASKS)),
    ),
    "bert_decoder": Family("BertConfig", SIZES | {"is_decoder": True}, ("BertModel", "BertLMHeadModel")),
    "electra_decoder": Family(
        "ElectraConfig", SIZES | {"embedding_size": 16, "is_decoder": True}, ("ElectraModel", "ElectraForCausalLM")
    ),
    "roberta_decoder": Family("RobertaConfig", SIZES | {"is_decoder": True}, ("RobertaModel", "RobertaForCausalLM")),
}  # fmt: skip


def architecture(name: str) -> str:
    """Returns the name of a family as `apply_fastlm_to_...` has it."""
    return name.removesuffix("_decoder")


class Inputs:
    """Makes the configuration and the inputs of a family, under the names that the mixin's tests ask for."""

    is_training = True
    batch_size, seq_length, num_choices = BATCH, LENGTH, 4
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def __init__(self, family: Family):
        self.family = family

    def get_config(self) -> transformers.PreTrainedConfig:
        return getattr(transformers, self.family.config)(**self.family.options)

    def prepare_config_and_inputs_for_common(self) -> tuple[transformers.PreTrainedConfig, dict[str, torch.Tensor]]:
        tokens = torch.randint(2, VOCABULARY - 1, (BATCH, LENGTH))
        mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [4], [LENGTH]])
        return self.get_config(), {"input_ids": tokens, "attention_mask": mask.long()}


def sources() -> Path:
    """Returns the folder of transformers' sources, which need not exist."""
    return Path(os.environ.get(VARIABLE, BUILD / f"transformers-{transformers.__version__}"))


def reason_to_skip() -> str | None:
    """Returns why the mixin cannot run, and what would help, or None."""
    if not (sources() / FILE).is_file():
        return f"{sources() / FILE} is not there: python -P tests/mixin.py downloads it, or set {VARIABLE}"
    if importlib.util.find_spec("parameterized") is None:
        return "transformers' tests import parameterized: pip install parameterized"
    return None


def download() -> None:
    """Downloads the source distribution of the installed version, and unpacks the mixin's file."""
    name = f"transformers-{transformers.__version__}"
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-binary", "transformers", "--dest", str(BUILD)]
    wanted = f"transformers=={transformers.__version__}"
    subprocess.run([sys.executable, "-P", "-m", "pip", "download", *options, wanted], check=True)
    with tarfile.open(BUILD / f"{name}.tar.gz") as archive:
        archive.extract(f"{name}/{FILE}", BUILD, filter="data")


def marks() -> set[str]:
    """Returns the names of pytest's marks in the mixin's file, which pytest must know before it is imported."""
    return set(re.findall(r"@(?:pytest\.)?mark\.(\w+)", (sources() / FILE).read_text(encoding="utf-8")))


@cache
def load() -> types.ModuleType:
    """Imports test_modeling_common.py as a file of a package whose absent files hold empty mixins."""
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str((sources() / FILE).parent)]
    sys.modules[PACKAGE] = package
    for path, mixin in ABSENT.items():
        folder, _, _ = path.partition(".")
        sys.modules.setdefault(f"{PACKAGE}.{folder}", types.ModuleType(f"{PACKAGE}.{folder}"))
        absent = types.ModuleType(f"{PACKAGE}.{path}")
        setattr(absent, mixin, type(mixin, (), {}))
        sys.modules[f"{PACKAGE}.{path}"] = absent
    return importlib.import_module(f"{PACKAGE}.test_modeling_common")


def case_class(family: Family) -> type[unittest.TestCase]:
    """Returns a test case of the mixin for a family."""
    mixin = load().ModelTesterMixin

    def set_up(self) -> None:
        self.model_tester = Inputs(family)

    def prepare(self, inputs: dict, model_class: type, return_labels: bool = False) -> dict:
        inputs = mixin._prepare_for_class(self, inputs, model_class, return_labels=return_labels)
        second = {"BertForPreTraining": "next_sentence_label", "AlbertForPreTraining": "sentence_order_label"}
        if return_labels and model_class.__name__.endswith("ForPreTraining"):
            inputs["labels"] = torch.zeros(BATCH, LENGTH, dtype=torch.long)
            if model_class.__name__ in second:
                inputs[second[model_class.__name__]] = torch.zeros(BATCH, dtype=torch.long)
        return inputs

    models = tuple(getattr(transformers, name) for name in family.models)
    members = {"all_model_classes": models, "setUp": set_up, "_prepare_for_class": prepare, **family.switches}
    return type(f"{family.config}Test", (mixin, unittest.TestCase), members)


def names_of_tests(case: type[unittest.TestCase]) -> list[str]:
    """Returns the names of the tests of a case."""
    return unittest.TestLoader().getTestCaseNames(case)


class Outcome(NamedTuple):
    """Holds how a test ended: "passed", "skipped" or "failed", and the reason or the traceback."""

    word: str
    text: str = ""


def outcome(case: type[unittest.TestCase], name: str) -> Outcome:
    """Runs one test."""
    torch.manual_seed(0)
    result = unittest.TestResult()
    with warnings.catch_warnings(record=True), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("always")  # some tests look for a warning
        case(name).run(result)
    broken = result.failures + result.errors
    if broken:
        return Outcome("failed", broken[0][1])
    return Outcome("skipped", result.skipped[0][1]) if result.skipped else Outcome("passed")


if __name__ == "__main__":
    if not (sources() / FILE).is_file():
        download()
    print(sources() / FILE)
