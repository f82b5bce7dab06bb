"""Metadata and packages are in pyproject.toml; this drives CMake, which compiles csrc/ to `fastlm._C`.

Environment variables:
    FASTLM_REQUIRE_CUDA=1    a missing nvcc is an error (a failing compilation always is)
    FASTLM_CUDA_ARCHS=90a;80 compile for these architectures only ("80-virtual" is PTX; "none" leaves `_C` out)
    CUDACXX, CUDA_HOME       which nvcc; otherwise the one on PATH or in /usr/local/cuda
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
BUILD = ROOT / "build" / f"cuda-{sys.implementation.cache_tag}"

# sm_80 code also runs on 86 and 89; the PTX is for what comes after 120.
ARCHITECTURES = "80;90a;100;120;80-virtual"


def find_nvcc() -> str | None:
    """The path of nvcc, or None. CUDACXX or CUDA_HOME, where set, has the only say."""
    if "CUDACXX" in os.environ:
        return shutil.which(os.environ["CUDACXX"])
    if "CUDA_HOME" in os.environ:
        return shutil.which("nvcc", path=Path(os.environ["CUDA_HOME"]) / "bin")
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def architectures() -> list[str]:
    """The targets as CMake names them: machine code (-real), or PTX where -virtual is asked for."""
    names = re.findall(r"[^;, ]+", os.environ.get("FASTLM_CUDA_ARCHS", "")) or ARCHITECTURES.split(";")
    if names == ["none"]:
        return []
    for name in names:
        if not re.fullmatch(r"native|\d+[af]?(-virtual)?", name):
            sys.exit(f"fastlm: FASTLM_CUDA_ARCHS must be 'none' or a list such as 90a;80, got {name!r} in it")
    return [name if "-" in name or name == "native" else f"{name}-real" for name in names]


def why_without_extension() -> str | None:
    """Why `_C` is not to be compiled, or None where it is."""
    if not architectures():
        return "FASTLM_CUDA_ARCHS is 'none'"
    if find_nvcc() is None:
        places = "PATH and /usr/local/cuda"
        for name in ("CUDA_HOME", "CUDACXX"):
            places = f"{name} ({os.environ[name]})" if name in os.environ else places
        return f"no nvcc was found in {places}"
    return None


def report_missing_extension() -> None:
    """Says in one line, when building, that `_C` is left out; ends the build where it is required."""
    why = why_without_extension()
    if why is not None and os.environ.get("FASTLM_REQUIRE_CUDA") == "1":
        sys.exit(f"fastlm: FASTLM_REQUIRE_CUDA=1, but {why}: fastlm._C cannot be compiled")
    if why is not None:
        print(f"fastlm: {why}: installing without fastlm._C, the CUDA C++ kernels", file=sys.stderr)


class BuildPython(build_py):
    """Copies the modules into an empty folder: what an earlier build left there would go into the wheel."""

    def run(self) -> None:
        report_missing_extension()
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildExtension(build_ext):
    """Compiles with CMake. The build folder stays, so that the next build compiles only what has changed."""

    def run(self) -> None:
        report_missing_extension()
        super().run()

    def build_extension(self, extension: Extension) -> None:
        nvcc = find_nvcc()
        try:
            configure(nvcc)
            subprocess.run(["cmake", "--build", BUILD, "--target", "_C"], check=True)
        except subprocess.CalledProcessError:
            sys.exit(
                f"fastlm: compiling fastlm._C with {nvcc} failed (reasons above): CUDA_HOME chooses another nvcc, "
                "FASTLM_CUDA_ARCHS=90a other targets; FASTLM_CUDA_ARCHS=none installs without the CUDA C++ kernels"
            )
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(BUILD / target.name, target)


def configure(nvcc: str | None) -> None:
    """Runs CMake, afresh where anything differs from the last time: its cache does not survive another nvcc, nor the
    tools of an isolated build, which are gone after it."""
    import pybind11

    cache = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_CUDA_ARCHITECTURES": ";".join(architectures()),
        "CMAKE_CUDA_COMPILER": nvcc,
        "CMAKE_MAKE_PROGRAM": shutil.which("ninja"),
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    command = ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(BUILD), *(f"-D{k}={v}" for k, v in cache.items())]
    last = BUILD / "configured-by"
    same = last.exists() and last.read_text() == "\n".join(command)
    last.unlink(missing_ok=True)
    subprocess.run(command if same else [*command, "--fresh"], check=True)
    last.write_text("\n".join(command))


setup(
    ext_modules=[] if why_without_extension() else [Extension("fastlm._C", [])],
    cmdclass={"build_py": BuildPython, "build_ext": BuildExtension},
)
