"""`fastlm info`: versions, devices, and which backend serves each op, and why."""

from __future__ import annotations

import importlib
import platform
from importlib import metadata

import torch

import fastlm
from fastlm import backends


def info() -> str:
    """What is installed and what each op runs on, as lines for a terminal."""
    return "\n".join([*_versions(), "", *_devices(), "", *_ops()])


def _versions() -> list[str]:
    rows = [("fastlm", fastlm.__version__), ("python", platform.python_version()), ("torch", torch.__version__)]
    rows += [(name, _installed(name)) for name in ("triton", "numpy", "tokenizers", "safetensors", "transformers")]
    rows += [("CUDA of torch", torch.version.cuda or "none (a CPU build)"), ("fastlm._C", _extension())]
    return [f"{name:14} {value}" for name, value in rows]


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _extension() -> str:
    error = backends.extension_error()
    if error is not None:
        return f"not compiled: {error}"
    return f"compiled for {importlib.import_module('fastlm._C').architectures}"


def _devices() -> list[str]:
    cpu = f"CPU            {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        return [cpu, "GPU            none that torch can use"]
    return [cpu, *(_gpu(i) for i in range(torch.cuda.device_count()))]


def _gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    memory, capability = properties.total_memory / 2**30, f"{properties.major}.{properties.minor}"
    return f"GPU {index}          {properties.name}, compute capability {capability}, {memory:.0f} GiB"


def _ops() -> list[str]:
    """For each op, what `auto` takes on this machine, by dtype, and why."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines = [f"What backend='auto' takes for tensors on {device}:", ""]
    lines.append(f"{'op':22} {'float32':10} {'bfloat16':10} {'float16':10} {'float64':10} why (bfloat16)")
    for op in backends.DTYPES:
        dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
        chosen = [backends.explain(op, dtype, device) for dtype in dtypes]
        lines.append(f"{op:22} " + " ".join(f"{backend:10}" for backend, _ in chosen) + f" {chosen[1][1]}")
    return lines
