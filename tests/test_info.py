"""`fastlm info` tells the truth about versions, devices and backends, in 100 columns."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

import fastlm
from fastlm import backends, info
from fastlm.ops import SPECS


def test_versions_and_devices():
    text = info.info()
    assert re.search(rf"^fastlm +{re.escape(fastlm.__version__)}$", text, re.M)
    assert re.search(rf"^torch +{re.escape(torch.__version__)}$", text, re.M)
    if torch.cuda.is_available():
        assert re.search(rf"^GPU 0 +{re.escape(torch.cuda.get_device_name(0))}, compute capability", text, re.M)
    else:
        assert re.search(r"^GPU +none that torch can use$", text, re.M)


def test_the_table_is_what_auto_takes():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines = info.info().splitlines()
    table = lines[lines.index(f"What backend='auto' takes for tensors on {device}:") + 2 :]
    table = table[: table.index("")] if "" in table else table
    dtypes = [getattr(torch, name) for name in table[0].split()[1:5]]
    assert dtypes == [torch.float32, torch.bfloat16, torch.float16, torch.float64]
    assert [line.split()[0] for line in table[1:]] == list(SPECS)
    for line in table[1:]:
        op, *chosen = line.split()
        assert chosen == [backends.choose(SPECS[op], "auto", backends.Call(device, dtype)) for dtype in dtypes]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the reasons are those of a machine without a GPU")
@pytest.mark.parametrize("switches", [{}, {"TRITON_INTERPRET": "1", "FASTLM_EMULATE": "1"}], ids=["plain", "tests"])
def test_each_reason_is_said_once(monkeypatch, switches):
    for name in ("TRITON_INTERPRET", "FASTLM_EMULATE"):
        monkeypatch.setenv(name, switches.get(name, "0"))
    said = " ".join(info.info().split())
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    calls = [(op, dtype) for op in SPECS for dtype in dtypes]
    reasons = {(name, reason) for call in calls for name, reason in info._chosen(*call, "cpu")[1].items()}
    assert len(reasons) > 3
    for name in {name for name, _ in reasons}:
        section = re.search(rf"Why not {name}: (.*?)(?= Why not|$)", said)[1]
        for reason in (reason for of, reason in reasons if of == name):
            assert section.count(f": {reason}") == 1, reason


def test_an_op_is_listed_by_its_spec_alone(monkeypatch):
    spec = dataclasses.replace(
        SPECS["bias_gelu"], op="toy", limits={"reference": SPECS["bias_gelu"].limits["reference"]}
    )
    monkeypatch.setitem(SPECS, "toy", spec)
    assert re.search(r"^toy +reference +reference +reference +reference$", info.info(), re.M)


def test_a_group_of_calls_is_named_in_few_words():
    ops, dtypes = list(SPECS), ["float32", "bfloat16", "float16", "float64"]

    def named(ops, dtypes):
        return info._calls([(op, dtype) for op in ops for dtype in dtypes])

    assert named(["adamw"], dtypes) == "adamw"
    assert named(ops, ["float64"]) == "float64"
    assert named(["attention", "adamw"], ["float32", "float64"]) == "float32, float64 in attention, adamw"
    assert named([op for op in ops if op != "adamw"], ["float64"]) == "float64 in all ops but adamw"


def test_it_fits_100_columns(monkeypatch):
    checkout = str(Path(fastlm.__file__).parent.parent)  # at the end of a command, it is as long as it is
    assert max(len(line.removesuffix(checkout)) for line in info.info().splitlines()) <= 100
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(backends, "extension_error", lambda: "fastlm._C cannot be imported (" + "no symbol " * 40 + ")")
    assert max(map(len, info.info().splitlines())) <= 100


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(backends, "extension_error", lambda: "fastlm._C cannot be imported (no such file)")
    assert re.search(r"^fastlm\._C +compiled, but fastlm\._C cannot be imported \(no such file\)$", info.info(), re.M)

    def version(name):
        raise info.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(info.metadata, "version", version)
    for name in ("triton", "tokenizers", "safetensors", "transformers"):
        assert re.search(rf"^{name} +not installed$", info.info(), re.M)


@pytest.mark.parametrize(
    ("gpu", "why"),
    [
        (False, "no GPU that torch can use was found"),
        (True, "fastlm was installed without nvcc, or with FASTLM_CUDA_ARCHS=none"),
    ],
)
def test_an_extension_that_was_not_compiled_comes_with_the_command_that_compiles_it(monkeypatch, tmp_path, gpu, why):
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    *said, command = info._extension()
    assert " ".join(" ".join(said).split()) == f"fastlm._C not compiled: {why}. This compiles it:"
    assert command.strip() == f"FASTLM_REQUIRE_CUDA=1 pip install -v -e {Path(fastlm.__file__).parent.parent}"

    monkeypatch.setattr(fastlm, "__file__", str(tmp_path / "site-packages" / "fastlm" / "__init__.py"))
    command = "FASTLM_REQUIRE_CUDA=1 pip install -v --force-reinstall --no-deps CHECKOUT_OF_FASTLM"
    assert info._extension()[-1].strip() == command


@pytest.mark.gpu
def test_on_a_gpu_the_kernels_that_exist_are_taken():
    for op, spec in SPECS.items():
        chosen = backends.choose(spec, "auto", backends.Call("cuda", torch.bfloat16))
        assert (chosen == "reference") == (len(spec.limits) == 1), op
