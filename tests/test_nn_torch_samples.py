"""The modules that replace torch.nn's, on the samples and errors by which torch tests its own modules.

torch's wheel holds the samples (`module_db`), but not its test files, so the checks are written here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

import fastlm
from fastlm import nn as fnn
from fastlm.nn.arguments import ARGUMENTS
from fastlm.patching.torch_modules import REPLACEMENTS

INFOS = {info.module_cls.__name__: info for info in module_db if info.module_cls.__name__ in ARGUMENTS}
pytestmark = pytest.mark.filterwarnings("ignore:.*torch's own computation", "ignore:.*(nested_tensor|ignored; chunked)")
PADDING = ("key_padding_mask", "src_key_padding_mask")


def test_torch_has_samples_for_every_namesake():
    absent = {name for name in ARGUMENTS if not hasattr(nn, name)}  # LinearCrossEntropyLoss came with torch 2.13
    assert set(INFOS) == set(ARGUMENTS) - absent


def samples(name: str, training: bool) -> Iterator[tuple[str, tuple, dict, tuple, dict]]:
    """Yields torch's samples: what it says of one, and the arguments of the constructor and of the call, float64.

    torch's attention samples all have three different tensors. Those of one shape come again as self-attention.
    """
    info = INFOS[name]
    made = info.module_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=True, training=training)
    for index, sample in enumerate(made):
        text = f"sample {index}: {sample.desc}"
        constructor, call = sample.constructor_input, sample.forward_input
        yield text, constructor.args, constructor.kwargs, call.args, call.kwargs
        if name == "MultiheadAttention" and len({x.shape for x in call.args}) == 1:
            yield f"{text}, query thrice", constructor.args, constructor.kwargs, call.args[:1] * 3, call.kwargs


def modules(name: str, how: str, args: tuple, kwargs: dict, training: bool) -> tuple[nn.Module, nn.Module]:
    """Returns torch's module and ours of the same parameters, float64."""
    theirs = getattr(nn, name)(*args, **kwargs).double().train(training)
    ours = copy.deepcopy(theirs)
    if how == "patched":
        fastlm.patch(ours)
        return theirs, ours
    ours = getattr(fnn, name)(*args, **kwargs).double().train(training)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def output(module: nn.Module, args: tuple, kwargs: dict) -> Tensor:
    """Calls a module and returns its output at the positions that are not padding."""
    given = module(*args, **kwargs)
    y = given[0] if isinstance(given, tuple) else given
    padding = next((kwargs[name] for name in PADDING if kwargs.get(name) is not None), None)
    if padding is None or padding.dtype != torch.bool:
        return y
    first = getattr(module, "layers", [module])[0]
    batch_first = getattr(first, "self_attn", first).batch_first
    return (y if batch_first or padding.dim() == 1 else y.transpose(0, 1))[~padding]


def gradients(y: Tensor, module: nn.Module, args: tuple) -> list[Tensor]:
    wanted = [x for x in args if torch.is_tensor(x) and x.requires_grad]
    wanted += [p for _, p in sorted(module.named_parameters())]
    found = torch.autograd.grad((y * torch.linspace(0.5, 1.5, y.numel()).view_as(y)).sum(), wanted, allow_unused=True)
    return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(wanted, found, strict=True)]


CASES = [(name, "made") for name in INFOS] + [(of.__name__, "patched") for of in REPLACEMENTS]


@pytest.mark.parametrize(("name", "how"), CASES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_outputs_and_gradients_of_torch_s_samples_are_torch_s(name, how, training):
    count = 0
    for text, made_of, options, args, kwargs in samples(name, training):
        theirs, ours = modules(name, how, made_of, options, training)
        expected, actual = output(theirs, args, kwargs), output(ours, args, kwargs)
        count += 1
        if expected.isnan().any():  # torch's mean of no losses
            assert name == "CrossEntropyLoss" and actual.item() == 0
            continue
        assert_close(actual, expected, rtol=1e-9, atol=1e-9, msg=lambda m, text=text: f"{text}: {m}")
        if expected.requires_grad and expected.numel():
            for ours_, theirs_ in zip(gradients(actual, ours, args), gradients(expected, theirs, args), strict=True):
                assert_close(ours_, theirs_, rtol=1e-9, atol=1e-9, msg=lambda m, text=text: f"{text}: {m}")
    assert count


def strided(x: object) -> object:
    """Returns a floating tensor of the same values whose elements are not adjacent, and anything else as it is."""
    if not torch.is_tensor(x) or not x.is_floating_point() or x.dim() == 0:
        return x
    return torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0]


@pytest.mark.parametrize("name", INFOS)
def test_strided_inputs_of_torch_s_samples_are_served(name):
    for text, made_of, options, args, kwargs in samples(name, training=True):
        _, ours = modules(name, "made", made_of, options, training=True)
        expected = output(ours, args, kwargs)
        query = strided(args[0])
        apart = tuple(query if x is args[0] else strided(x) for x in args)
        assert_close(output(ours, apart, kwargs), expected, msg=lambda m, text=text: f"{text}: {m}")


@pytest.mark.parametrize("name", [name for name, info in INFOS.items() if info.module_error_inputs_func])
def test_what_torch_refuses_is_refused(name):
    info = INFOS[name]
    made = info.module_error_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=False, training=True)
    for case in made:
        constructor, call = case.module_error_input.constructor_input, case.module_error_input.forward_input
        with pytest.raises((case.error_type, TypeError, ValueError)):  # ours, also at construction, in place of torch's
            module = getattr(fnn, name)(*constructor.args, **constructor.kwargs)
            if case.error_on != ModuleErrorEnum.CONSTRUCTION_ERROR:
                module(*call.args, **call.kwargs)
