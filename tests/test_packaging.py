"""Wheels, the sdist and editable installs, each used in its own environment, outside the checkout.

The environments hold the package's core requirements and nothing else, linked from the one that runs the tests.
The fast tests compile a csrc/ of one kernel and few bindings, the slow ones all of csrc/.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parent.parent
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
LEFT_OUT = (".*", "build", "dist", "runs", "*.egg-info", "*.so", "__pycache__")

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc: a wheel with fastlm._C cannot be built here")

# fastlm._C without its launchers builds in the same way, in a tenth of the time.
SMALL_BINDINGS = """
#include <pybind11/pybind11.h>
PYBIND11_MODULE(_C, m) { m.attr("architectures") = FASTLM_ARCHITECTURES; }
"""
SMALL_KERNEL = "__global__ void nothing() {}\n"

DRIVER_WITHOUT_GPU = "int cuInit(unsigned flags) { return 100; }\n"  # CUDA_ERROR_NO_DEVICE

# libcuda.so.1 of a machine with the GPUs of CAPABILITIES, as far as setup.py asks.
FAKE_DRIVER = """
static const int capabilities[][2] = {CAPABILITIES};
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int* count) { *count = sizeof(capabilities) / sizeof(capabilities[0]); return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = capabilities[device][attribute - 75];
  return 0;
}
"""

SMOKE_TEST = """
import importlib.util, torch, fastlm, fastlm.kernels
from fastlm.data.corpus import novels
assert importlib.util.find_spec("tokenizers") is None, "more than the core requirements is installed"
assert novels().stat().st_size > 1_000_000
x, residual = torch.randn(2, 5, 64, requires_grad=True), torch.randn(2, 5, 64)
y = fastlm.add_layer_norm(x, residual, torch.ones(64), torch.zeros(64))
torch.testing.assert_close(y, torch.nn.functional.layer_norm(x + residual, (64,)))
y.sum().backward()
from fastlm.models import BERT, PRESETS
BERT(PRESETS["bert_tiny"])(torch.ones(1, 7, dtype=torch.int64))
print(fastlm.__file__, fastlm.kernels.__file__, sep="\\n")
"""


def run(command: Sequence[object], cwd: Path, **environment: object) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("FASTLM_", "TRITON_", "PYTHON"))}
    for name in ("CUDACXX", "CUDA_HOME"):
        inherited.pop(name, None)
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=inherited | {name: str(value) for name, value in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def checked(command: Sequence[object], cwd: Path, **environment: object) -> str:
    result = run(command, cwd, **environment)
    assert result.returncode == 0, result.stdout
    return result.stdout


def pip(*arguments: object) -> list[object]:
    return [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", *arguments]


@dataclass(frozen=True)
class Environment:
    """Makes a virtual environment with torch, numpy and their requirements, without pip."""

    folder: Path

    @staticmethod
    def create(folder: Path) -> Environment:
        venv.create(folder, with_pip=False, symlinks=True)
        environment = Environment(folder)
        for name in required("torch", "numpy"):
            for top in {file.parts[0] for file in metadata.files(name) or [] if file.parts[0] != ".."}:
                source, link = Path(metadata.distribution(name).locate_file(top)), environment.packages / top
                if top != "__pycache__" and source.exists() and not link.is_symlink():
                    link.symlink_to(source)
        return environment

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages"))

    def smoke_test(self, cwd: Path) -> list[Path]:
        """Imports fastlm, runs an op and its gradient; returns the paths of fastlm and fastlm.kernels."""
        return [Path(line) for line in checked([self.python, "-c", SMOKE_TEST], cwd).splitlines()]

    def info(self, cwd: Path) -> str:
        return checked([self.folder / "bin" / "fastlm", "info"], cwd)


def required(*names: str) -> set[str]:
    """Returns these distributions and all that they require."""
    found: set[tuple[str, str]] = set()
    waiting = [(name, "") for name in names]  # (name, extra); "" stands for no extra
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for requirement in map(Requirement, metadata.requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(requirement.name, wanted) for wanted in ("", *requirement.extras)]
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def isolation(tmp_path_factory) -> list[str]:
    """Returns pip's options for builds: isolated, unless no package index can be reached."""
    probe = pip("install", "--dry-run", "--ignore-installed", "--no-deps", "--retries", 0, "--timeout", 15, "pybind11")
    return [] if run(probe, tmp_path_factory.mktemp("probe")).returncode == 0 else ["--no-build-isolation"]


@pytest.fixture(scope="module", params=["small", pytest.param("whole", marks=pytest.mark.slow)])
def checkout(request, tmp_path_factory) -> Path:
    """Returns a copy of the working tree without ignored files; "small" has a csrc/ that compiles in seconds."""
    copy = tmp_path_factory.mktemp("checkout") / "fastlm"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    if request.param == "small":
        for source in [*copy.glob("csrc/*.cu"), *copy.glob("csrc/attention/*.cu")]:
            source.unlink()
        (copy / "csrc" / "nothing.cu").write_text(SMALL_KERNEL)
        (copy / "csrc" / "bindings.cpp").write_text(SMALL_BINDINGS)
    return copy


def build_wheel(source: Path, out: Path, isolation: list[str], **environment: object) -> Path:
    checked(pip("wheel", source, "--no-deps", "--wheel-dir", out, *isolation), out.parent, **environment)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def compiled() -> Mapping[str, object]:
    return {"CUDACXX": NVCC, "FASTLM_REQUIRE_CUDA": 1, "FASTLM_CUDA_ARCHS": "90a"}


@pytest.fixture(scope="module")
def sdist(checkout, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    checked([sys.executable, "-P", "-c", build, out], checkout)
    return next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module", params=["checkout", "sdist"])
def wheel(request, checkout, sdist, isolation, compiled, tmp_path_factory) -> Path:
    source = {"checkout": checkout, "sdist": sdist}[request.param]
    return build_wheel(source, tmp_path_factory.mktemp("wheel") / "dist", isolation, **compiled)


@pytest.fixture(scope="module")
def pure_wheel(checkout, isolation, tmp_path_factory) -> Path:
    nowhere = tmp_path_factory.mktemp("cuda")
    return build_wheel(checkout, tmp_path_factory.mktemp("pure") / "dist", isolation, CUDA_HOME=nowhere)


def install(wheel: Path, folder: Path) -> Environment:
    environment = Environment.create(folder)
    checked(pip("--python", environment.python, "install", "--no-index", wheel), folder)
    return environment


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def modules() -> set[str]:
    paths = [p.relative_to(ROOT).as_posix() for folder in ("fastlm", "kernels") for p in (ROOT / folder).rglob("*.py")]
    return {"fastlm/" + path if path.startswith("kernels/") else path for path in paths}


DATA = {"fastlm/py.typed", "fastlm/data/novels.jsonl.xz"}


def test_builds_are_isolated_from_torch(isolation):
    if isolation:
        pytest.skip("no package index can be reached: the other tests here built without isolation")
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert "torch" not in pyproject.split("requires = ", 1)[1].split("]", 1)[0]


@needs_nvcc
def test_a_wheel_holds_the_package_and_nothing_else(wheel):
    extension = {name for name in names_in(wheel) if name.startswith("fastlm/_C.") and name.endswith(".so")}
    assert len(extension) == 1
    assert names_in(wheel) == modules() | extension | DATA


def test_an_sdist_holds_what_a_build_needs(checkout, sdist):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    sources = {p.relative_to(checkout).as_posix() for p in (checkout / "csrc").rglob("*.*") if p.is_file()}
    assert len(sources) > 10
    assert sources | {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "kernels/__init__.py"} <= names
    assert not any(name.endswith(".so") for name in names)


ALL_TARGETS = "80 90a 100 120 80-virtual"
NO_GPU = "no GPU was found, and FASTLM_CUDA_ARCHS=all is not set"
OLD_GPU = "no GPU of compute capability 8.0 or later (but 7.5) was found, and FASTLM_CUDA_ARCHS=all is not set"


@pytest.mark.parametrize(
    ("gpus", "archs", "wheel", "editable"),
    [
        ((), None, ALL_TARGETS, NO_GPU),
        ((), "all", ALL_TARGETS, ALL_TARGETS),
        ((), "none", "FASTLM_CUDA_ARCHS is 'none'", "FASTLM_CUDA_ARCHS is 'none'"),
        (((9, 0),), None, ALL_TARGETS, "90a"),
        (((9, 0), (8, 9), (8, 0)), None, ALL_TARGETS, "90a 80"),
        (((9, 0),), "native;80-virtual", "90a 80-virtual", "90a 80-virtual"),
        (((10, 3),), "native", "100", "100"),
        (((11, 0),), "native", "80-virtual", "80-virtual"),
        (((12, 1),), "100,120", "100 120", "100 120"),
        (((7, 5),), None, ALL_TARGETS, OLD_GPU),
    ],
)
def test_which_targets_a_build_compiles(driver, gpus, archs, wheel, editable):
    machine = {**driver(gpus), **({} if archs is None else {"FASTLM_CUDA_ARCHS": archs})}
    assert targets(machine, "bdist_wheel") == wheel
    assert targets(machine, "editable_wheel") == editable


def test_an_editable_install_that_must_have_the_extension_compiles_it_without_a_gpu(driver):
    required = {"FASTLM_REQUIRE_CUDA": 1}
    assert targets({**driver(()), **required}, "editable_wheel") == ALL_TARGETS
    assert targets({**driver(((9, 0),)), **required}, "editable_wheel") == "90a"


@pytest.fixture
def driver(tmp_path) -> Callable[[Sequence[tuple[int, int]]], dict[str, object]]:
    """Returns the environment of a machine with an nvcc and GPUs of these compute capabilities."""

    def with_gpus(capabilities: Sequence[tuple[int, int]]) -> dict[str, object]:
        source, nvcc = tmp_path / "driver.c", tmp_path / "nvcc"
        listed = ", ".join(f"{{{major}, {minor}}}" for major, minor in capabilities)
        source.write_text(FAKE_DRIVER.replace("CAPABILITIES", listed) if capabilities else DRIVER_WITHOUT_GPU)
        checked(["c++", "-x", "c", "-shared", "-fPIC", source, "-o", tmp_path / "libcuda.so.1"], tmp_path)
        nvcc.touch(mode=0o755)
        return {"LD_LIBRARY_PATH": tmp_path, "CUDACXX": nvcc}

    return with_gpus


def targets(machine: Mapping[str, object], command: str) -> str:
    """Returns the targets that a command of setup.py would compile for on this machine, or why there are none."""
    ask = (
        "import runpy, sys; setup = runpy.run_path('setup.py'); "
        "print(setup['why_without_extension']() or ' '.join(setup['targets']()))"
    )
    return checked([sys.executable, "-P", "-c", ask, command], ROOT, **machine).strip()


@needs_nvcc
def test_a_build_in_place_says_which_file_of_how_many_is_compiled(checkout, compiled):
    build = [sys.executable, "-P", "setup.py", "--quiet", "build_ext", "--inplace"]
    assert checked(build, checkout, CUDA_VISIBLE_DEVICES="").splitlines() == [
        f"fastlm: {NO_GPU}: installing without fastlm._C, the CUDA C++ kernels"
    ]
    said = checked(build, checkout, **compiled)
    sources = len([*checkout.glob("csrc/*.cu"), *checkout.glob("csrc/attention/*.cu")]) + 1
    assert f"fastlm: compiling csrc/ with {NVCC} for 90a in {checkout}/build/cuda-" in said
    # ninja may first look for new source files, as a step of its own, and count it in the total.
    steps = re.findall(r"fastlm: \[(\d+) of (\d+), [\d.]+ s\] (?:Building|Linking)", said)
    assert [int(step) for step, _ in steps] == [*range(1, sources + 2)]  # the last one links
    assert {int(total) for _, total in steps} <= {sources + 1, sources + 2}
    assert "no work to do" in checked(build, checkout, **compiled)


def test_training_without_a_gpu_compiles_nothing():
    planned = checked(["make", "--dry-run", "--always-make", "train"], ROOT)
    assert "pip --disable-pip-version-check install --no-build-isolation --editable" in planned
    assert "FASTLM_CUDA_ARCHS=none" in planned
    compilers = [line for line in planned.splitlines() if "build_ext" in line or "cmake --build" in line]
    assert len(compilers) == 1 and compilers[0].endswith("setup.py --quiet build_ext --inplace")


@needs_nvcc
def test_a_wheel_works_outside_the_checkout(wheel, tmp_path):
    environment = install(wheel, tmp_path / "venv")
    assert all(path.is_relative_to(environment.packages / "fastlm") for path in environment.smoke_test(tmp_path))
    assert "compiled for 90a" in environment.info(tmp_path)
    checked([environment.python, "-c", "import fastlm._C"], tmp_path)


def test_without_nvcc_a_wheel_is_pure_and_says_so(pure_wheel, tmp_path):
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    assert names_in(pure_wheel) == modules() | DATA
    environment = install(pure_wheel, tmp_path / "venv")
    environment.smoke_test(tmp_path)
    line = next(line for line in environment.info(tmp_path).splitlines() if line.startswith("fastlm._C"))
    assert "not compiled" in line


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "installing without fastlm._C, the CUDA C++ kernels"),
        ({"FASTLM_REQUIRE_CUDA": 1}, "FASTLM_REQUIRE_CUDA=1, but no nvcc was found in CUDA_HOME"),
        ({"FASTLM_REQUIRE_CUDA": 1, "FASTLM_CUDA_ARCHS": "none"}, "FASTLM_REQUIRE_CUDA=1, but FASTLM_CUDA_ARCHS"),
        (
            {"FASTLM_CUDA_ARCHS": "80;hopper"},
            "FASTLM_CUDA_ARCHS must be 'all', 'native', 'none' or a list such as 90a;80, got 'hopper' in '80;hopper'",
        ),
    ],
)
def test_what_a_build_without_nvcc_says(checkout, tmp_path, variables, sentence):
    command = pip("wheel", checkout, "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path)
    result = run([*command, *([] if variables else ["-v"])], tmp_path, CUDA_HOME=tmp_path, **variables)
    assert (result.returncode == 0) == (not variables), result.stdout
    assert result.stdout.count(f"fastlm: {sentence}" if variables else sentence) == 1, result.stdout
    assert "Traceback" not in result.stdout


def test_an_nvcc_that_does_not_work_is_an_error(checkout, tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    command = pip("wheel", checkout, "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path)
    result = run(command, tmp_path, CUDACXX=nvcc)
    assert result.returncode != 0
    assert f"fastlm: compiling fastlm._C with {nvcc} failed" in result.stdout


@needs_nvcc
def test_a_source_that_does_not_compile_is_an_error(checkout, compiled, tmp_path):
    broken = shutil.copytree(checkout, tmp_path / "broken", ignore=shutil.ignore_patterns(*LEFT_OUT))
    with (broken / "csrc" / "bindings.cpp").open("a") as bindings:
        bindings.write("#error planted\n")
    command = pip("wheel", broken, "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path)
    result = run(command, tmp_path, **compiled)
    assert result.returncode != 0
    assert "#error planted" in result.stdout
    assert f"fastlm: compiling fastlm._C with {NVCC} failed" in result.stdout


@needs_nvcc
def test_an_editable_install_beside_another_package_named_kernels(checkout, compiled, isolation, tmp_path):
    environment = Environment.create(tmp_path / "venv")
    options = ("--python", environment.python, "install", "--no-deps", *isolation)
    checked(pip(*options, "--editable", checkout), tmp_path, **compiled)
    ours = checkout / "kernels" / "__init__.py"
    assert environment.smoke_test(tmp_path) == [checkout / "fastlm" / "__init__.py", ours]
    assert "compiled for 90a" in environment.info(tmp_path)

    show = "import kernels, fastlm.kernels; print(kernels.__file__, fastlm.kernels.__file__, sep='\\n')"
    assert checked([environment.python, "-c", show], checkout).splitlines() == [str(ours), str(ours)]
    other = environment.packages / "kernels" / "__init__.py"
    other.parent.mkdir()
    other.write_text("from kernels.loading import get_kernel\n")
    other.with_name("loading.py").write_text("def get_kernel(): ...\n")
    for cwd, path in ((checkout, ""), (tmp_path, f"{tmp_path}:{checkout}")):
        shown = checked([environment.python, "-c", show], cwd, PYTHONPATH=path).splitlines()
        assert shown == [str(other), str(ours)]
