"""Builds what a prediction needs: csrc/'s kernels for an H100, linked with a runtime that records launches.

Everything built is kept in the user's cache folder, under a name that is a hash of its sources and its command.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
TARGET = ("-gencode", "arch=compute_90a,code=sm_90a")


class MissingTool(Exception):
    """Names a program that a prediction needs and that is not installed."""


def cache() -> Path:
    """Returns the folder of everything that is kept: $XDG_CACHE_HOME/fastlm/predict."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastlm" / "predict"


def tool(name: str) -> str:
    """Returns the path of a program: of triton's own copy where it has one, otherwise that on PATH."""
    spec = importlib.util.find_spec("triton")
    own = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name if spec and spec.origin else None
    found = str(own) if own is not None and own.exists() else shutil.which(name)
    if found is None:
        raise MissingTool(f"{name} is needed for predictions, and is neither in triton nor on PATH")
    return found


def output(command: Sequence[str | os.PathLike], folder: Path | None = None) -> str:
    """Runs a program and returns what it prints; if it fails, raises RuntimeError with its errors."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr[-4000:]}")
    return done.stdout


def digest(paths: Iterable[Path], *more: str) -> str:
    """Returns a hash of the names and contents of files, and of further words."""
    total = hashlib.sha256(repr(more).encode())
    for path in sorted(paths):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()[:20]


def build_once(target: Path, command: Sequence[str]) -> Path:
    """Runs a command, with `target` in place of its word "{}", unless `target` exists. Returns `target`."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        output([tool(command[0]), *(str(built) if word == "{}" else word for word in command[1:])])
        os.replace(built, target)
    return target


def included(path: Path, root: Path, seen: set[Path] | None = None) -> set[Path]:
    """Returns a source and all files of the project that it includes."""
    seen = set() if seen is None else seen
    if path not in seen and path.exists():
        seen.add(path)
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(), re.MULTILINE):
            for folder in (root, path.parent):
                included((folder / name).resolve(), root, seen)
    return seen


def compile_kernels(source: Path, csrc: Path) -> Path:
    """Compiles a .cu file into an object, with the flags of CMakeLists.txt and without a CUDA runtime."""
    standard = re.search(r"CMAKE_CUDA_STANDARD (\d+)", (csrc.parent / "CMakeLists.txt").read_text())[1]
    flags = ["-O3", "-DNDEBUG", f"-std=c++{standard}", *TARGET, "-cudart", "none"]
    flags += ["-Xcompiler", "-fPIC,-fvisibility=hidden"]
    target = cache() / "objects" / f"{source.stem}-{digest(included(source, csrc), *flags)}.o"
    if target.exists():
        return target
    started = time.monotonic()
    build_once(target, ["nvcc", *flags, f"-I{csrc}", "-c", str(source), "-o", "{}"])
    print(f"compiled {source.name} in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return target


def cubin_of(compiled: Path) -> Path:
    """Extracts the one cubin of an object."""
    target = compiled.with_suffix(".cubin")
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=compiled.parent) as folder:
            output([tool("cuobjdump"), "-xelf", "all", compiled.resolve()], Path(folder))
            (cubin,) = Path(folder).glob("*.cubin")
            os.replace(cubin, target)
    return target


def sources(csrc: Path, stems: Iterable[str] | None = None) -> list[Path]:
    """Returns the .cu files of the given stems (a file's or a folder's), of partials.cu, or without stems all."""
    every = sorted([*csrc.glob("*.cu"), *csrc.glob("*/*.cu")])
    wanted = None if stems is None else {*stems, "partials"}
    return [p for p in every if wanted is None or wanted & {p.stem, p.parent.name}]


def recording_extension(csrc: Path, stems: Iterable[str] | None = None) -> tuple[ModuleType, ctypes.CDLL, list[Path]]:
    """Returns `_C` on the recording runtime with these launchers of csrc/, the library, and its kernels' cubins."""
    csrc = csrc.resolve()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda path: compile_kernels(path, csrc), sources(csrc, stems)))
    recorder = build_once(
        cache() / "objects" / f"recorder-{digest([HERE / 'recording_runtime.cpp'])}.o",
        ["g++", "-O1", "-std=c++20", "-fPIC", "-c", str(HERE / "recording_runtime.cpp"), "-o", "{}"],
    )
    parts = [_compile_bindings(csrc), recorder, *objects]
    parts.append(_compile_absent(parts))
    library = build_once(
        cache() / "extensions" / digest(parts) / "_C.so",
        ["g++", "-shared", "-Wl,-Bsymbolic,--unresolved-symbols=ignore-all", *map(str, parts), "-o", "{}"],
    )
    spec = importlib.util.spec_from_file_location("_C", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, ctypes.CDLL(str(library)), [cubin_of(path) for path in objects]


def _compile_bindings(csrc: Path) -> Path:
    import pybind11

    flags = ["-O1", "-std=c++20", "-fPIC", "-fvisibility=hidden", f"-I{csrc}", '-DFASTLM_ARCHITECTURES="90a"']
    flags += [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    flags += [f"-I{folder}" for folder in _cuda_includes()]
    path = csrc / "bindings.cpp"
    target = cache() / "objects" / f"bindings-{digest(included(path, csrc), *flags)}.o"
    return build_once(target, ["g++", *flags, "-c", str(path), "-o", "{}"])


def _cuda_includes() -> list[str]:
    """Returns the folders of CUDA's headers."""
    command = [tool("nvcc"), "--dryrun", "-x", "cu", "-c", os.devnull]
    text = subprocess.run(command, capture_output=True, text=True).stderr
    return re.findall(r'"?-I([^"\s]+)"?', next((line for line in text.splitlines() if "INCLUDES=" in line), ""))


def _symbols(path: Path, option: str) -> list[str]:
    return [line.split()[-1] for line in output([tool("nm"), option, path]).splitlines()]


def _compile_absent(parts: Sequence[Path]) -> Path:
    """Defines the launchers that the bindings name but whose files are not linked. A call of one aborts."""
    present = {symbol for path in parts for symbol in _symbols(path, "--defined-only")}
    wanted = dict.fromkeys(symbol for path in parts for symbol in _symbols(path, "-u"))
    absent = [symbol for symbol in sorted(wanted) if symbol.startswith("_ZN6fastlm") and symbol not in present]
    text = "#include <cstdlib>\n" + "".join(f'extern "C" void {symbol}() {{ abort(); }}\n' for symbol in absent)
    source = cache() / "objects" / f"absent-{hashlib.sha256(text.encode()).hexdigest()[:20]}.cpp"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(text)
    return build_once(source.with_suffix(".o"), ["g++", "-c", "-fPIC", str(source), "-o", "{}"])
