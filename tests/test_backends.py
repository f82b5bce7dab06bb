"""The choice of a backend: `auto` finds one; an explicit request gets that backend or an error with the reasons."""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
import types

import pytest
import torch
from checks import Case, kernel_cases

import fastlm
from fastlm import backends
from fastlm.backends import Call, Limits, Spec
from fastlm.ops import SPECS

# An op that does not exist. It claims to have a reference, and a Triton kernel in kernels/toy.py.
TOY = Spec(
    "toy",
    kernels="toy",
    limits={
        "reference": Limits((torch.float32, torch.float64)),
        "triton": Limits((torch.float32, torch.bfloat16), max_width=64, multiple=4, chip=(8, 0)),
    },
    cost=lambda: None,
)


def choose(spec: Spec | str, request: str, dtype: torch.dtype, device: str, **more) -> str:
    return backends.choose(SPECS[spec] if isinstance(spec, str) else spec, request, Call(device, dtype, **more))


@pytest.fixture
def toy(monkeypatch):
    """Simulates a machine with everything installed, except the modules that a test adds to the returned dict, each
    with its error."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("FASTLM_EMULATE", raising=False)
    missing = {}
    monkeypatch.setattr(backends, "_import_error", missing.get)
    return missing


@pytest.fixture
def calls(monkeypatch):
    """Returns the list of "backend.launcher" names that are called, in order."""
    found, launchers = [], backends.launchers

    class Spy:
        def __init__(self, backend, kernels):
            self.backend, self.launchers = backend, launchers(backend, kernels)

        def __getattr__(self, name):
            found.append(f"{self.backend}.{name}")
            return getattr(self.launchers, name)

    monkeypatch.setattr(backends, "launchers", Spy)
    return found


def test_auto_takes_the_first_backend_that_can_serve_the_call(toy):
    assert choose(TOY, "auto", torch.float32, "cuda") == "triton"
    assert choose(TOY, "auto", torch.float64, "cuda") == "reference"
    assert choose(TOY, "auto", torch.float32, "cpu") == "reference"
    assert choose(TOY, "auto", torch.float32, "mps") == "reference"
    toy["fastlm.kernels.toy"] = "fastlm.kernels.toy cannot be imported (a reason)"
    assert choose(TOY, "auto", torch.float32, "cuda") == "reference"
    every = (
        "toy: no backend serves this call: triton: it takes float32, bfloat16, not float16, fastlm.kernels.toy cannot "
        "be imported (a reason); cuda: there is no cuda kernel for toy yet; reference: it takes float32, float64, not "
        "float16"
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(every)}$"):
        choose(TOY, "auto", torch.float16, "cuda")


def test_auto_goes_by_the_chip_and_the_shape_class(toy):
    spec = dataclasses.replace(TOY, order={(9, "short"): ("reference", "triton")})
    assert choose(spec, "auto", torch.float32, "cuda", chip=(9, 0), shape_class="short") == "reference"
    assert choose(spec, "auto", torch.bfloat16, "cuda", chip=(9, 0), shape_class="short") == "triton"
    assert choose(spec, "auto", torch.float32, "cuda", chip=(9, 0), shape_class="long") == "triton"
    assert choose(spec, "auto", torch.float32, "cuda", chip=(10, 0), shape_class="short") == "triton"
    assert choose(spec, "auto", torch.float32, "cuda", chip=(7, 5), shape_class="short") == "reference"


def test_auto_on_the_cpu_is_its_own_backend_for_every_op_and_dtype():
    for op, dtype in itertools.product(SPECS, (torch.float32, torch.float16, torch.bfloat16, torch.float64)):
        assert choose(op, "auto", dtype, "cpu") == "cpu"
        with pytest.raises(RuntimeError, match="on cuda, and this backend is for CPU tensors"):
            choose(op, "cpu", dtype, "cuda")


@pytest.mark.parametrize("op", SPECS)
def test_an_explicit_request_is_served_or_refused_by_name(op):
    served = 0
    for name, dtype, device in itertools.product(backends.NAMES[1:], (torch.float32, torch.float64), ("cpu", "cuda")):
        try:
            assert choose(op, name, dtype, device) == name
            assert dtype in SPECS[op].limits[name].dtypes
            served += 1
        except RuntimeError as error:
            assert str(error).startswith(f"{op}: backend '{name}' cannot serve this call: "), error
    assert served >= 4  # the reference serves both dtypes on both devices


@pytest.mark.parametrize(
    ("backend", "dtype", "device", "reason"),
    [
        ("cuda", torch.float32, "cuda", "there is no cuda kernel for toy yet"),
        ("triton", torch.float64, "cuda", "it takes float32, bfloat16, not float64"),
        ("triton", torch.float32, "cpu", r"the tensors are on cpu, and Triton's kernels need a CUDA device"),
    ],
)
def test_reasons(toy, backend, dtype, device, reason):
    with pytest.raises(RuntimeError, match=f"toy: backend '{backend}' cannot serve this call: {reason}"):
        choose(TOY, backend, dtype, device)


def test_a_refusal_names_every_reason(toy):
    call = {"width": 70, "chip": (7, 5)}
    sentence = (
        "toy: backend 'triton' cannot serve this call: it takes float32, bfloat16, not float64; it takes a last "
        "dimension of at most 64, not 70; it takes a last dimension that is a multiple of 4, not 70; it needs a GPU of "
        "compute capability 8.0 or more, and this one has 7.5"
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(sentence)}$"):
        choose(TOY, "triton", torch.float64, "cuda", **call)


def test_reasons_of_what_is_not_installed(toy):
    toy["triton"] = "triton cannot be imported (No module named 'triton')"
    with pytest.raises(
        RuntimeError, match="cannot serve this call: triton cannot be imported .No module named 'triton'"
    ):
        choose(TOY, "triton", torch.float32, "cuda")
    del toy["triton"]
    toy["fastlm.kernels.toy"] = "fastlm.kernels.toy cannot be imported"
    with pytest.raises(RuntimeError, match="fastlm.kernels.toy cannot be imported"):
        choose(TOY, "triton", torch.float32, "cuda")
    toy["fastlm._C"] = "fastlm._C cannot be imported"
    with pytest.raises(RuntimeError, match="fastlm._C cannot be imported"):
        choose("add_layer_norm", "cuda", torch.float32, "cuda")
    with pytest.raises(RuntimeError, match="the tensors are on cpu, and CUDA kernels need a CUDA device"):
        choose("add_layer_norm", "cuda", torch.float32, "cpu")


def test_reasons_where_kernels_are_interpreted_and_emulated(toy, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("FASTLM_EMULATE", "1")
    assert choose(TOY, "triton", torch.float32, "cpu") == "triton"
    with pytest.raises(RuntimeError, match="Triton's interpreter computes bfloat16 wrongly"):
        choose(TOY, "triton", torch.bfloat16, "cpu")
    assert choose("add_layer_norm", "cuda", torch.float32, "cpu") == "cuda"
    with pytest.raises(RuntimeError, match="FASTLM_EMULATE=1 is for CPU tensors"):
        choose("add_layer_norm", "cuda", torch.float32, "cuda")
    toy["_C_emulated"] = "_C_emulated cannot be imported"
    with pytest.raises(RuntimeError, match="_C_emulated cannot be imported"):
        choose("add_layer_norm", "cuda", torch.float32, "cpu")


def test_import_errors_name_the_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastlm._C", None)
    backends._import_error.cache_clear()
    try:
        assert backends.extension_error().startswith("fastlm._C cannot be imported (")
        assert backends._import_error("math") is None
    finally:
        backends._import_error.cache_clear()


def test_the_first_reason_is_what_no_machine_changes(toy):
    assert backends.reasons_against(TOY, "triton", Call("cuda", torch.float32)) == []
    assert backends.reasons_against(TOY, "cuda", Call("cpu", torch.float32)) == ["there is no cuda kernel for toy yet"]
    dtype, device = backends.reasons_against(TOY, "triton", Call("cpu", torch.float64))
    assert dtype == "it takes float32, bfloat16, not float64"
    assert device.startswith("the tensors are on cpu, and Triton's kernels need a CUDA device")


def test_the_reference_is_called_directly_and_the_others_by_their_launchers(monkeypatch):
    def launch(launchers, x):
        return launchers, x

    monkeypatch.setattr(backends, "launchers", lambda backend, kernels: (backend, kernels))
    assert backends.implementation(TOY, "triton", "bias_gelu_forward", launch)(1) == (("triton", "toy"), 1)
    assert backends.implementation(TOY, "reference", "bias_gelu_forward", launch) is fastlm.reference.bias_gelu_forward


def test_names_are_checked_where_they_are_given():
    sentence = "backend must be one of auto, reference, cpu, triton, cuda, got 'cudnn'"
    with pytest.raises(ValueError, match=sentence):
        fastlm.set_backend("cudnn")
    with pytest.raises(ValueError, match=sentence), fastlm.use_backend("cudnn"):
        pass
    with pytest.raises(ValueError, match=sentence):
        choose("layer_norm", "cudnn", torch.float32, "cpu")
    assert fastlm.get_backend() == "auto"


def test_use_backend_nests_and_ends_with_its_block():
    with fastlm.use_backend("triton"):
        with fastlm.use_backend("reference"):
            assert fastlm.get_backend() == "reference"
        assert fastlm.get_backend() == "triton"
    with pytest.raises(KeyError), fastlm.use_backend("cuda"):
        raise KeyError
    assert fastlm.get_backend() == "auto"


def test_set_backend_lasts():
    fastlm.set_backend("reference")
    try:
        assert fastlm.get_backend() == "reference"
        assert choose("add_layer_norm", "auto", torch.float32, "cuda") == "reference"
    finally:
        fastlm.set_backend("auto")


def arguments(case: Case) -> list[torch.Tensor]:
    x = torch.randn(3, 8, dtype=case.dtype, device=case.device)
    return [x.requires_grad_(), x.detach().flip(0), torch.ones(8, dtype=case.dtype, device=case.device)]


FUSED = [p for p in kernel_cases("add_layer_norm") if p.values[0].dtype == torch.float32]
BOTH = ["{}.add_layer_norm_forward", "{}.add_layer_norm_backward"]


@pytest.mark.parametrize("case", FUSED)
def test_a_call_s_backward_is_its_forward_s_backend(case, calls):
    with fastlm.use_backend(case.backend):
        y = fastlm.add_layer_norm(*arguments(case))
    y.sum().backward()
    assert calls == [name.format(case.backend) for name in BOTH]


@pytest.mark.parametrize("case", FUSED)
def test_the_argument_outranks_the_default(case, calls):
    with fastlm.use_backend("reference"):
        fastlm.add_layer_norm(*arguments(case), backend=case.backend).sum().backward()
    assert calls == [name.format(case.backend) for name in BOTH]
    calls.clear()
    with fastlm.use_backend(case.backend):
        fastlm.add_layer_norm(*arguments(case), backend="reference").sum().backward()
    assert not calls


@pytest.mark.parametrize("case", FUSED)
def test_compiled_code_follows_the_default(case, calls):
    compiled = torch.compile(lambda *t: fastlm.add_layer_norm(*t), fullgraph=True, backend="aot_eager")
    with fastlm.use_backend("reference"):
        compiled(*arguments(case)).sum().backward()
    assert not calls
    with fastlm.use_backend(case.backend):
        compiled(*arguments(case)).sum().backward()
    assert calls == [name.format(case.backend) for name in BOTH]


def test_compiled_code_refuses_as_eager_does():
    x = torch.zeros(2, 8, dtype=torch.float64)
    compiled = torch.compile(lambda x: fastlm.add_layer_norm(x, x, x[0], backend="triton"), backend="aot_eager")
    with pytest.raises(
        RuntimeError, match="add_layer_norm: backend 'triton' cannot serve this call: it takes .* not float64"
    ):
        compiled(x)


def test_an_extension_s_launchers_are_given_the_stream(monkeypatch):
    received = []
    module = types.SimpleNamespace(launch=lambda *args: received.append(args))
    monkeypatch.setitem(sys.modules, "an_extension", module)
    streams = iter([7, 8])
    extension = backends._Extension("an_extension", lambda: next(streams))
    extension.launch(1, 2)
    extension.launch(3)
    assert received == [(1, 2, 7), (3, 8)]
    with pytest.raises(AttributeError):
        extension.missing  # noqa: B018
