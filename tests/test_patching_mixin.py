"""transformers' common tests of models, run on patched models: classes after `apply_fastlm_to_bert` and its like.

Each test runs patched; one that does not pass also runs unpatched. The tables below hold all that do not pass.
"""

from __future__ import annotations

import copy
import inspect

import mixin
import pytest
import torch
import transformers

from fastlm import patching
from fastlm.patching.swap import Swapped
from fastlm.patching.transformers.tables import ARCHITECTURES

# Tests that must pass patched, not only be skipped, in each family.
ESSENTIAL = {
    "test_batching_equivalence",
    "test_hidden_states_output",
    "test_model_outputs_equivalence",
    "test_resize_embeddings_untied",
    "test_resize_tokens_embeddings",
    "test_save_load",
    "test_tied_weights_keys",
    "test_torch_save_load",
    "test_training",
}
# The same where the model has several attention implementations and gradient checkpointing: not openai-gpt.
ESSENTIAL_BUT_OPENAI_GPT = {
    "test_eager_matches_sdpa_inference_08_fp32_pad_left_sdpa_kernels",
    "test_eager_matches_sdpa_inference_12_fp32_pad_right_sdpa_kernels",
    "test_gradient_checkpointing_enable_disable",
    "test_training_gradient_checkpointing",
    "test_training_gradient_checkpointing_use_reentrant_true",
}
# Tests that pass unpatched and fail patched, with reasons.
DIFFERENCES = {
    "test_sdpa_can_dispatch_non_composite_models": "expects the name 'sdpa' where no implementation is asked for",
}
# Tests that fail unpatched, too, in families with a model that generates.
UNPATCHED = {
    "test_generation_tester_mixin_inheritance": "expects the tests of generation, which are not in the distribution",
}


@pytest.fixture(autouse=True)
def reverted():
    yield
    for name in ARCHITECTURES:
        patching.revert(name)


def test_the_small_models_are_patched_and_equal_the_unpatched_ones():
    """Runs every class that the mixin runs on. Compares valid positions."""
    for name, family in mixin.FAMILIES.items():
        config, inputs = mixin.Inputs(family).prepare_config_and_inputs_for_common()
        valid = inputs["attention_mask"].bool()
        inputs["input_ids"] = inputs["input_ids"].where(valid, config.pad_token_id)
        for cls in (getattr(transformers, model) for model in family.models):
            patching.revert(mixin.architecture(name))
            expected = cls(copy.deepcopy(config)).eval()
            getattr(patching, f"apply_fastlm_to_{mixin.architecture(name)}")()
            model = cls(copy.deepcopy(config)).eval()
            assert any(isinstance(module, Swapped) for module in model.modules()), cls
            assert inspect.signature(model.forward) == inspect.signature(expected.forward), cls
            model.load_state_dict(expected.state_dict())
            if cls.__name__.endswith("ForMultipleChoice"):
                given = {key: x[:, None].repeat(1, 4, 1) for key, x in inputs.items()}
            else:
                given = inputs
            found, expected = model(**given)[0], expected(**given)[0]
            if found.ndim > 1 and found.shape[:2] == valid.shape:
                found, expected = found[valid], expected[valid]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, msg=lambda text, cls=cls: f"{cls}: {text}")


@pytest.mark.slow(twin="test_the_small_models_are_patched_and_equal_the_unpatched_ones")
@pytest.mark.skipif(mixin.reason_to_skip() is not None, reason=mixin.reason_to_skip() or "")
@pytest.mark.parametrize("name", mixin.FAMILIES)
def test_the_common_tests_pass_patched(name, pytestconfig):
    for mark in mixin.marks():
        pytestconfig.addinivalue_line("markers", f"{mark}: a mark of transformers' tests")
    case = mixin.case_class(mixin.FAMILIES[name])
    tests = mixin.names_of_tests(case)
    getattr(patching, f"apply_fastlm_to_{mixin.architecture(name)}")()
    patched = {test: mixin.outcome(case, test) for test in tests}
    patching.revert(mixin.architecture(name))
    unpatched = {test: mixin.outcome(case, test) for test in tests if patched[test].word != "passed"}
    one_implementation = name == "openai_gpt"
    differences = set() if one_implementation else DIFFERENCES.keys()
    essential = ESSENTIAL if one_implementation else ESSENTIAL | ESSENTIAL_BUT_OPENAI_GPT
    ends = {test: (end.word, patched[test].word) for test, end in unpatched.items()}
    listed = dict.fromkeys(differences, ("passed", "failed"))
    if any(cls.can_generate() for cls in case.all_model_classes):
        listed |= dict.fromkeys(UNPATCHED, ("failed", "failed"))
    others = {test: end for test, end in ends.items() if test in listed or end != ("skipped", "skipped")}
    assert others == listed, "\n".join(f"{test}: {patched[test].text}" for test in others if test not in listed)
    assert not essential - (patched.keys() - unpatched.keys())
