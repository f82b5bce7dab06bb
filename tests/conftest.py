"""Chooses where kernels run and which tests run.

Kernels run on the GPU if there is one, otherwise in Triton's interpreter and on the emulator. Tests come in two tiers:
`make test` runs the fast ones, `make test-all` (pytest --all) also those marked `slow`. Each slow test has a fast twin:
either the same test with a faster parameter, or the test that `@pytest.mark.slow(twin="test_...")` names.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).parent.parent
SLOW_TESTS = "slow tests are deselected: make test-all (pytest --all) runs them"

# Tests import benchmarks/ from here. Last on the path, so that kernels/ does not hide the PyPI package of that name.
sys.path.append(str(ROOT))

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated, so before any import of fastlm.kernels
    os.environ["FASTLM_EMULATE"] = "1"
    sys.path.insert(0, str(ROOT / "build" / "emulated"))

# Tests send these to programs that they start. `nohup make test &` would make all of them ignore both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A fixed number of threads, so that the order of sums does not depend on the machine's number of cores.
torch.set_num_threads(min(2, os.cpu_count() or 1))

# The same examples in every run, so that a failure comes from a change of the code. No time limit per example.
settings.register_profile("fastlm", deadline=None, derandomize=True)
settings.load_profile("fastlm")


def pytest_addoption(parser) -> None:
    parser.addoption("--all", action="store_true", help="run the tests marked slow, too")


def pytest_report_header(config) -> list[str]:
    tier = [] if _runs_slow_tests(config) else [f"fastlm: {SLOW_TESTS}"]
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
        return [f"fastlm: kernels run on {device}; on the CPU only the reference runs", *tier]
    where = "Triton runs in its interpreter, CUDA C++ on the emulator"
    return [f"fastlm: no CUDA device: {where}; gpu tests are deselected", *tier]


def pytest_runtest_setup(item) -> None:
    torch.manual_seed(0)  # random numbers do not depend on earlier tests


def pytest_collection_modifyitems(config, items) -> None:
    for item in items:
        _check_twin(item)
    if not torch.cuda.is_available():
        _deselect(config, items, "gpu")
    if not _runs_slow_tests(config):
        _deselect(config, items, "slow")


def pytest_terminal_summary(terminalreporter, config) -> None:
    if not _runs_slow_tests(config):
        terminalreporter.write_line(f"fastlm: {SLOW_TESTS}")


def _runs_slow_tests(config) -> bool:
    return config.option.all or "slow" in config.option.markexpr


def _deselect(config, items, mark: str) -> None:
    deselected = [item for item in items if item.get_closest_marker(mark)]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if not item.get_closest_marker(mark)]


def _check_twin(item) -> None:
    """Ends the run if a slow test has neither a fast parameter nor a twin."""
    of_parameters = item.callspec.marks if hasattr(item, "callspec") else []
    for mark in item.iter_markers("slow"):
        twin = mark.kwargs.get("twin", "")
        if mark not in of_parameters and not callable(getattr(item.module, twin, None)):
            raise pytest.UsageError(
                f"{item.nodeid}: a slow test names its fast twin in the same file, as in "
                f'@pytest.mark.slow(twin="test_..."), got twin={twin!r}'
            )
