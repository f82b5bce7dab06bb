"""`fastlm info` tells the truth about versions, devices and backends."""

import re

import pytest
import torch

import fastlm
from fastlm import backends, info


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
    dtypes = [getattr(torch, name) for name in table[0].split()[1:5]]
    assert dtypes == [torch.float32, torch.bfloat16, torch.float16, torch.float64]
    assert [line.split()[0] for line in table[1:]] == list(backends.DTYPES)
    for line in table[1:]:
        op, *chosen = line.split()[:5]
        assert chosen == [backends.resolve(op, "auto", dtype, device) for dtype in dtypes]


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(backends, "extension_error", lambda: "fastlm._C cannot be imported (no such file)")
    assert re.search(r"^fastlm\._C +not compiled: fastlm\._C cannot be imported \(no such file\)$", info.info(), re.M)

    def version(name):
        raise info.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(info.metadata, "version", version)
    for name in ("triton", "tokenizers", "safetensors", "transformers"):
        assert re.search(rf"^{name} +not installed$", info.info(), re.M)


@pytest.mark.gpu
def test_on_a_gpu_the_kernels_that_exist_are_taken():
    for op, supported in backends.DTYPES.items():
        chosen, _ = backends.explain(op, torch.bfloat16, "cuda")
        assert (chosen == "reference") == (len(supported) == 1), op
