"""`fastlm info`: versions, devices, which backend serves each op, and why not the others."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import shlex
import textwrap
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

import fastlm
from fastlm import backends
from fastlm.ops import SPECS

WIDTH = 100  # columns
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def info() -> str:
    """Returns the versions, the devices and the backend of each op, as lines of at most 100 columns."""
    return "\n".join([*_versions(), "", *_devices(), "", *_ops()])


def _versions() -> list[str]:
    rows = [("fastlm", fastlm.__version__), ("python", platform.python_version()), ("torch", torch.__version__)]
    rows += [(name, _installed(name)) for name in ("triton", "numpy", "tokenizers", "safetensors", "transformers")]
    rows += [("CUDA of torch", torch.version.cuda or "none (a CPU build)")]
    return [f"{name:14} {value}" for name, value in rows] + _extension()


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _extension() -> list[str]:
    """Returns the targets of `fastlm._C`, or why it does not exist and the command that compiles it."""
    if importlib.util.find_spec("fastlm._C") is None:
        why = "no GPU that torch can use was found"
        if torch.cuda.is_available():
            why = "fastlm was installed without nvcc, or with FASTLM_CUDA_ARCHS=none"
        return [*_wrapped("fastlm._C", f"not compiled: {why}. This compiles it:"), f"{'':15}{_compile_command()}"]
    error = backends.extension_error()
    if error is not None:
        return _wrapped("fastlm._C", f"compiled, but {error}")
    return _wrapped("fastlm._C", f"compiled for {importlib.import_module('fastlm._C').architectures}")


def _compile_command() -> str:
    """Returns the command that compiles `fastlm._C`; it names the checkout if fastlm runs from one."""
    checkout = Path(fastlm.__file__).parent.parent
    if (checkout / "setup.py").exists():
        return f"FASTLM_REQUIRE_CUDA=1 pip install -v -e {shlex.quote(str(checkout))}"
    return "FASTLM_REQUIRE_CUDA=1 pip install -v --force-reinstall --no-deps CHECKOUT_OF_FASTLM"


def _devices() -> list[str]:
    cpu = f"CPU            {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        return [cpu, "GPU            none that torch can use"]
    return [cpu, *(_gpu(i) for i in range(torch.cuda.device_count()))]


def _gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    memory, capability = properties.total_memory / 2**30, f"{properties.major}.{properties.minor}"
    return f"GPU {index}          {properties.name}, compute capability {capability}, {memory:.0f} GiB"


def _ops() -> Iterator[str]:
    """Yields a table of the backends that `auto` takes per op and dtype, then each reason against the others once."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    yield from (f"What backend='auto' takes for tensors on {device}:", "")
    yield f"{'op':22} " + " ".join(f"{backends.dtype_name(dtype):10}" for dtype in DTYPES).rstrip()
    refused: dict[str, dict[str, list[tuple[str, str]]]] = {}  # backend -> reason -> (op, dtype)s
    for op in SPECS:
        chosen = {dtype: _chosen(op, dtype, device) for dtype in DTYPES}
        yield f"{op:22} " + " ".join(f"{backend:10}" for backend, _ in chosen.values()).rstrip()
        for dtype, (_, reasons) in chosen.items():
            for backend, reason in reasons.items():
                refused.setdefault(backend, {}).setdefault(reason, []).append((op, backends.dtype_name(dtype)))
    for backend, reasons in refused.items():
        yield from ("", f"Why not {backend}:")
        yield from _grouped(reasons)


def _chosen(op: str, dtype: torch.dtype, device: str) -> tuple[str, dict[str, str]]:
    """Returns the backend that `auto` takes, and {backend: first reason} for the kernels that cannot serve the call."""
    chip = backends.compute_capability(torch.device(device)) if device == "cuda" else None
    spec, call = SPECS[op], backends.Call(device, dtype, chip=chip)
    chosen, refused = backends.choose(spec, "auto", call), {}
    for backend in ("triton", "cuda"):
        reasons = backends.reasons_against(spec, backend, call) if backend != chosen else []
        if reasons:
            refused[backend] = reasons[0]
    return chosen, refused


def _grouped(reasons: dict[str, list[tuple[str, str]]]) -> Iterator[str]:
    """Yields one line per reason, with its calls. The last line is the most frequent reason, for all other calls."""
    *few, last = sorted(reasons, key=lambda reason: len(reasons[reason]))
    for reason in few:
        yield from _wrapped("", f"{_calls(reasons[reason])}: {reason}")
    yield from _wrapped("", f"all other calls: {last}" if few else last)


def _calls(calls: list[tuple[str, str]]) -> str:
    """Describes calls as "DTYPES in OPS". Omits all dtypes, or all ops; names the excluded ops if they are fewer."""
    ops, dtypes = (list(dict.fromkeys(column)) for column in zip(*calls, strict=True))
    others = [op for op in SPECS if op not in ops]
    named = f"all ops but {', '.join(others)}" if 0 < len(others) < len(ops) else ", ".join(ops)
    if len(dtypes) == len(DTYPES):
        return named
    return ", ".join(dtypes) + (f" in {named}" if others else "")


def _wrapped(name: str, text: str) -> list[str]:
    """Wraps text into lines of WIDTH columns, after a name or, without one, indented."""
    first, indent = (f"{name:14} ", " " * 15) if name else ("  ", "    ")
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)
