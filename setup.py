"""Drives CMake, which compiles csrc/ to `fastlm._C`; metadata and packages are in pyproject.toml.

A wheel (`pip wheel .`, `pip install .`) may be used on any machine, so it holds all targets. An editable install and
`setup.py build_ext --inplace` compile only for this machine's GPU; without a GPU they compile nothing.

Environment variables:
    FASTLM_CUDA_ARCHS=90a;80  compiles for these targets: "80-virtual" is PTX, "all" is what a wheel holds,
                              "native" is this machine's GPU, "none" leaves `_C` out
    FASTLM_REQUIRE_CUDA=1     makes it an error to leave `_C` out (a failed compilation is always an error)
    CUDACXX, CUDA_HOME        choose nvcc; the default is the one on PATH or in /usr/local/cuda
"""

from __future__ import annotations

import ctypes
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

# sm_80 code also runs on 86 and 89; the PTX is for chips after 120.
ALL_TARGETS = ("80", "90a", "100", "120", "80-virtual")


def for_this_machine() -> bool:
    """Returns whether the build stays on this machine: an editable install, or `build_ext --inplace`."""
    return not {"editable_wheel", "develop", "--inplace", "-i"}.isdisjoint(sys.argv)


def required() -> bool:
    return os.environ.get("FASTLM_REQUIRE_CUDA") == "1"


def find_nvcc() -> str | None:
    """Returns the path of nvcc, or None. If CUDACXX or CUDA_HOME is set, it looks only there."""
    if "CUDACXX" in os.environ:
        return shutil.which(os.environ["CUDACXX"])
    if "CUDA_HOME" in os.environ:
        return shutil.which("nvcc", path=Path(os.environ["CUDA_HOME"]) / "bin")
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def compute_capabilities() -> list[tuple[int, int]]:
    """Returns (major, minor) of each GPU that CUDA programs see here. It asks the driver, so it needs no torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    if driver.cuInit(0) != 0:  # a driver without a GPU
        return []
    count, found = ctypes.c_int(), []
    driver.cuDeviceGetCount(ctypes.byref(count))
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
        found.append((major.value, minor.value))
    return found


def target_for(major: int, minor: int) -> str | None:
    """Returns the target in ALL_TARGETS that a chip runs: its own, one with a lower minor version, or PTX; None below
    8.0."""
    for target in ALL_TARGETS:
        number = re.fullmatch(r"(\d+)(\d)[af]?", target)
        if number and int(number[1]) == major and int(number[2]) <= minor:
            return target
    return "80-virtual" if major >= 8 else None


def native_targets() -> list[str]:
    """Returns the targets for this machine's GPUs. (CMake's "native" is 90 on a Hopper GPU, and csrc/ needs 90a.)"""
    targets = (target_for(*capability) for capability in compute_capabilities())
    return list(dict.fromkeys(target for target in targets if target is not None))


def targets() -> list[str]:
    """Returns the targets to compile for, with the names that FASTLM_CUDA_ARCHS has. [] leaves `_C` out."""
    given = re.findall(r"[^;, ]+", os.environ.get("FASTLM_CUDA_ARCHS", ""))
    if not given:
        given = ["native"] if for_this_machine() else ["all"]
        if required() and given == ["native"] and not native_targets():
            given = ["all"]
    lists = {"none": [], "all": list(ALL_TARGETS)}
    if len(given) == 1 and given[0] in lists:
        return lists[given[0]]
    for name in given:
        if not re.fullmatch(r"native|\d+[af]?(-virtual)?", name):
            sys.exit(
                "fastlm: FASTLM_CUDA_ARCHS must be 'all', 'native', 'none' or a list such as 90a;80, "
                f"got {name!r} in {';'.join(given)!r}"
            )
    expanded = [target for name in given for target in (native_targets() if name == "native" else [name])]
    return list(dict.fromkeys(expanded))


def why_without_extension() -> str | None:
    """Returns why `_C` is not compiled, or None if it is."""
    if os.environ.get("FASTLM_CUDA_ARCHS", "").strip() == "none":
        return "FASTLM_CUDA_ARCHS is 'none'"
    if not targets():
        found = ", ".join(f"{major}.{minor}" for major, minor in compute_capabilities())
        which = f"GPU of compute capability 8.0 or later (but {found})" if found else "GPU"
        return f"no {which} was found, and FASTLM_CUDA_ARCHS=all is not set"
    if find_nvcc() is None:
        places = "PATH and /usr/local/cuda"
        for name in ("CUDA_HOME", "CUDACXX"):
            places = f"{name} ({os.environ[name]})" if name in os.environ else places
        return f"no nvcc was found in {places}"
    return None


def report_missing_extension() -> None:
    """Prints one line if `_C` is left out; ends the build if it is required."""
    why = why_without_extension()
    if why is not None and required():
        sys.exit(f"fastlm: FASTLM_REQUIRE_CUDA=1, but {why}: fastlm._C cannot be compiled")
    if why is not None:
        print(f"fastlm: {why}: installing without fastlm._C, the CUDA C++ kernels", file=sys.stderr)


class BuildPython(build_py):
    """Copies the modules into an empty folder, so that a wheel holds no files from an earlier build."""

    def run(self) -> None:
        report_missing_extension()
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildExtension(build_ext):
    """Compiles with CMake. Each list of targets has its own build folder, so that builds are incremental."""

    def run(self) -> None:
        report_missing_extension()
        super().run()

    def build_extension(self, extension: Extension) -> None:
        nvcc = find_nvcc()
        build = ROOT / "build" / "-".join(["cuda", sys.implementation.cache_tag, *targets()])
        print(f"fastlm: compiling csrc/ with {nvcc} for {', '.join(targets())} in {build}", flush=True)
        try:
            configure(build, nvcc)
            progress = {"NINJA_STATUS": "fastlm: [%f of %t, %e s] "}
            command = ["cmake", "--build", build, "--target", "_C"]
            subprocess.run(command, check=True, env={**progress, **os.environ})
        except subprocess.CalledProcessError:
            sys.exit(
                f"fastlm: compiling fastlm._C with {nvcc} failed (reasons above): CUDA_HOME chooses another nvcc, "
                "FASTLM_CUDA_ARCHS=90a other targets; FASTLM_CUDA_ARCHS=none installs without the CUDA C++ kernels"
            )
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / target.name, target)


def configure(build: Path, nvcc: str | None) -> None:
    """Runs CMake in the folder `build`, with --fresh if the command differs from the last one: CMake's cache does not
    work with another nvcc, nor with the removed tools of an isolated build."""
    import pybind11

    cache = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_CUDA_ARCHITECTURES": ";".join(t if "-" in t else f"{t}-real" for t in targets()),
        "CMAKE_CUDA_COMPILER": nvcc,
        "CMAKE_MAKE_PROGRAM": shutil.which("ninja"),
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    command = ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build), *(f"-D{k}={v}" for k, v in cache.items())]
    last = build / "configured-by"
    same = last.exists() and last.read_text() == "\n".join(command)
    last.unlink(missing_ok=True)
    subprocess.run([*command, "--log-level=NOTICE", *([] if same else ["--fresh"])], check=True)
    last.write_text("\n".join(command))


if __name__ == "__main__":
    setup(
        ext_modules=[] if why_without_extension() else [Extension("fastlm._C", [])],
        cmdclass={"build_py": BuildPython, "build_ext": BuildExtension},
    )
