"""Describes the machine, the package versions, the commit, and the peak FLOP/s that MFU refers to."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent

# Peak FLOP/s of dense bf16 products with fp32 accumulation, from NVIDIA's data sheets (without sparsity). The keys are
# the driver's names and must match exactly: an H100 PCIe is slower than an H100 SXM, and a MIG slice than its card.
PEAK_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA GH200 480GB": 989.4e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
}
PACKAGES = ("fastlm", "torch", "triton", "numpy", "transformers", "liger-kernel", "cut-cross-entropy")
PACKAGES += ("quack-kernels", "flash-attn-4", "nvidia-cutlass-dsl", "nvidia-cudnn-cu13")


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def name() -> str:
    """Returns the GPU's name, or without a GPU the CPU's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def slug() -> str:
    """Returns the name as a folder name: "NVIDIA H100 80GB HBM3" becomes nvidia-h100-80gb-hbm3."""
    words = re.sub(r"\((R|TM)\)|@.*", "", name(), flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def peak_flops() -> float | None:
    """Returns the peak FLOP/s of the GPU, or None if it is not in the table."""
    return PEAK_FLOPS.get(name()) if torch.cuda.is_available() else None


def describe() -> dict[str, Any]:
    """Returns what a results file says about the machine."""
    facts: dict[str, Any] = {"name": name(), "device": device().type, "cpus": os.cpu_count()}
    facts |= {"threads": torch.get_num_threads(), "system": platform.platform(), "peak_flops": peak_flops()}
    facts["load"] = round(os.getloadavg()[0], 1)  # average number of running or waiting processes in the last minute
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        facts |= {
            "capability": f"{p.major}.{p.minor}",
            "memory_bytes": p.total_memory,
            "multiprocessors": p.multi_processor_count,
            "l2_bytes": p.L2_cache_size,
            "clocks": {"before": clocks()},
        }
    return facts


def clocks() -> dict[str, str] | None:
    """Returns the current clocks, temperature and power as nvidia-smi prints them, or None without nvidia-smi."""
    asked = ("clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw", "power.limit")
    asked += ("clocks_event_reasons.active", "driver_version")
    line = _output("nvidia-smi", "-i", "0", f"--query-gpu={','.join(asked)}", "--format=csv,noheader")
    values = [v.strip() for v in (line or "").splitlines()[0].split(",")] if line else []
    return dict(zip(asked, values, strict=True)) if len(values) == len(asked) else None


def versions() -> dict[str, str]:
    """Returns the versions of Python, CUDA and those of PACKAGES that are installed."""
    found = {"python": platform.python_version(), "cuda": torch.version.cuda or "none"}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> dict[str, Any]:
    """Returns the checkout's commit and whether tracked files differ from it; sha is "unknown" outside a repository."""
    sha = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    if not sha:
        return {"sha": "unknown", "date": None, "dirty": None}
    changes = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return {"sha": sha, "date": _output("git", "-C", str(ROOT), "show", "-s", "--format=%cI"), "dirty": bool(changes)}


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
