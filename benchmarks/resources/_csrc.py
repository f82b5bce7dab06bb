"""Lists the resources of each CUDA C++ kernel in a compiled `fastlm._C`, for each target in it.

    python -m benchmarks.resources._csrc [LIBRARY] [--json | --budget]

prints registers, spills, shared memory and the warps that fit on an SM. LIBRARY must hold PTX, which states the threads
per CTA; the default is the library that `make resources` compiles. --budget writes csrc.tsv beside this file;
tests/test_csrc_resources.py fails if a kernel exceeds its line there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.resources._compile import CUOBJDUMP, resources_in

BUDGET = Path(__file__).parent / "csrc.tsv"
COMPILED = Path(__file__).parent.parent.parent / "build" / "nvcc"  # see the Makefile's nvcc-90a and nvcc-all


@dataclass(frozen=True)
class Multiprocessor:
    """Holds the limits of one SM (CUDA programming guide, table of compute capabilities)."""

    warps: int
    blocks: int  # CTAs
    shared: int  # bytes
    registers: int = 65536


MULTIPROCESSORS = {
    "80": Multiprocessor(64, 32, 164 * 1024),
    "90a": Multiprocessor(64, 32, 228 * 1024),
    "100": Multiprocessor(64, 32, 228 * 1024),
    "120": Multiprocessor(48, 24, 100 * 1024),
}


@dataclass(frozen=True)
class Usage:
    """Holds the resources of one kernel on one target."""

    kernel: str
    arch: str
    threads: int  # per CTA
    registers: int  # per thread
    spills: int  # bytes per thread
    shared: int  # bytes of static shared memory per CTA

    def warps(self) -> int:
        """Returns how many warps fit on an SM, without regard to dynamic shared memory."""
        chip, warps = MULTIPROCESSORS[self.arch], self.threads // 32
        # Registers are allocated in units of 256 per warp. The system reserves 1 KiB of shared memory per CTA.
        by_registers = chip.registers // (-(-self.registers * 32 // 256) * 256) // warps
        return warps * min(chip.blocks, chip.warps // warps, by_registers, chip.shared // (self.shared + 1024))


def library(targets: str) -> Path | None:
    """Returns the `_C` that `make nvcc-90a` or `make nvcc-all` compiled (targets "90a" or "all"), or None."""
    return next((COMPILED / targets / "fastlm").glob("_C.*.so"), None)


def usages(compiled: Path) -> Iterator[Usage]:
    """Yields the usage of every kernel in a library on each of its targets."""
    threads = dict(re.findall(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)", _dump("-ptx", compiled)))
    names = dict(zip(threads, _demangled(threads), strict=True))
    arch = ""
    for line in _dump("--dump-resource-usage", compiled).splitlines():
        if found := re.match(r"arch = sm_(\w+)", line):
            arch = found[1]
        elif found := re.match(r" Function (\w+):", line):
            mangled = found[1]
        elif "REG:" in line:
            use = resources_in(line)
            spills = use["STACK"] + use["LOCAL"]
            yield Usage(names[mangled], arch, int(threads[mangled]), use["REG"], spills, use["SHARED"])


def _dump(option: str, compiled: Path) -> str:
    return subprocess.run([CUOBJDUMP, option, compiled], check=True, capture_output=True, text=True).stdout


def _demangled(names: dict[str, str]) -> list[str]:
    """Returns readable names with the file's stem in front, such as layer_norm.backward<bf16, RowShape<1, 3, true>>."""
    filtered = subprocess.run(["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True).stdout
    return [f"{_file(m)}.{_short(name)}" for m, name in zip(names, filtered.splitlines(), strict=True)]


def _file(mangled: str) -> str:
    """Returns the stem of the source file, which nvcc writes into the names of an anonymous namespace."""
    found = re.search(r"_GLOBAL__N__[0-9a-f]+_\d+_(\w+?)_cu_[0-9a-f]{8}", mangled)
    return found[1] if found else "csrc"


def _short(name: str) -> str:
    name = re.sub(r"\w+::", "", name.removeprefix("void ").replace("(anonymous namespace)::", ""))
    name = re.sub(r"\(.*\)$", "", name).replace("_kernel", "")
    for long, short in (("__nv_bfloat16", "bf16"), ("__half", "fp16"), ("float", "fp32"), ("> >", ">>")):
        name = name.replace(long, short)
    return name


def table(found: list[Usage]) -> Iterator[str]:
    """Yields csrc.tsv line by line: a kernel, its threads per CTA, its shared memory, its registers on each target."""
    archs = sorted({usage.arch for usage in found}, key=lambda arch: int(re.match(r"\d+", arch)[0]))
    yield "\t".join(["kernel", "threads", "shared", *archs])
    for kernel in sorted({usage.kernel for usage in found}):
        mine = {usage.arch: usage for usage in found if usage.kernel == kernel}
        shared = max(usage.shared for usage in mine.values())
        yield "\t".join(map(str, [kernel, mine[archs[0]].threads, shared, *(mine[a].registers for a in archs)]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resources._csrc", description=__doc__.split("\n")[0])
    parser.add_argument("library", nargs="?", type=Path, default=library("all"), metavar="LIBRARY", help="a `_C.*.so`")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--budget", action="store_true", help=f"write {BUDGET.name}")
    arguments = parser.parse_args()
    if arguments.library is None:
        print("csrc/ is not compiled: `make resources` compiles it where there is an nvcc")
        return
    found = sorted(usages(arguments.library), key=lambda usage: (usage.kernel, usage.arch))
    if arguments.budget:
        BUDGET.write_text("\n".join(table(found)) + "\n")
    elif arguments.json:
        for usage in found:
            print(json.dumps({**dataclasses.asdict(usage), "warps": usage.warps()}))
    else:
        row = "{:64} {:>4} {:>7} {:>9} {:>6} {:>6} {:>5}".format
        print(row("kernel", "arch", "threads", "registers", "spills", "shared", "warps"))
        for usage in found:
            print(row(*dataclasses.astuple(usage), usage.warps()))


if __name__ == "__main__":
    main()
