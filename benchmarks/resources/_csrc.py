"""Lists what each CUDA C++ kernel of a compiled `fastlm._C` takes of each chip it was compiled for.

python -m benchmarks.resources._csrc [LIBRARY] [--json | --budget]

prints registers, spills, shared memory and the warps that fit on a multiprocessor. LIBRARY must hold PTX, where the
threads of a block are read; by default it is what `make resources` compiles. --budget writes csrc.tsv beside this file,
the figures that tests/test_csrc_resources.py lets no kernel exceed.
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
    """What its blocks share (CUDA programming guide, table of compute capabilities)."""

    warps: int
    blocks: int
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
    """Of a kernel on a chip: registers a thread and bytes of spilled ones, static shared memory a block in bytes."""

    kernel: str
    arch: str
    threads: int  # a block's
    registers: int
    spills: int
    shared: int

    def warps(self) -> int:
        """How many fit on a multiprocessor, dynamic shared memory aside."""
        chip, warps = MULTIPROCESSORS[self.arch], self.threads // 32
        # A warp's registers are allocated 256 at a time; of shared memory the system takes 1 KiB a block.
        by_registers = chip.registers // (-(-self.registers * 32 // 256) * 256) // warps
        return warps * min(chip.blocks, chip.warps // warps, by_registers, chip.shared // (self.shared + 1024))


def library(targets: str) -> Path | None:
    """Returns the `_C` that `make nvcc-90a` or `make nvcc-all` compiled (targets "90a" or "all"), or None."""
    return next((COMPILED / targets / "fastlm").glob("_C.*.so"), None)


def usages(compiled: Path) -> Iterator[Usage]:
    """Yields the usage of all kernels in a library on all its chips, by the name that the source gives them."""
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
    """As the source has them, after the file's: layer_norm.backward<bf16, RowShape<1, 3, true>>."""
    filtered = subprocess.run(["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True).stdout
    return [f"{_file(m)}.{_short(name)}" for m, name in zip(names, filtered.splitlines(), strict=True)]


def _file(mangled: str) -> str:
    """The stem of the file that a kernel in an anonymous namespace is from."""
    found = re.search(r"_GLOBAL__N__[0-9a-f]+_\d+_(\w+?)_cu_[0-9a-f]{8}", mangled)
    return found[1] if found else "csrc"


def _short(name: str) -> str:
    name = re.sub(r"\w+::", "", name.removeprefix("void ").replace("(anonymous namespace)::", ""))
    name = re.sub(r"\(.*\)$", "", name).replace("_kernel", "")
    for long, short in (("__nv_bfloat16", "bf16"), ("__half", "fp16"), ("float", "fp32"), ("> >", ">>")):
        name = name.replace(long, short)
    return name


def table(found: list[Usage]) -> Iterator[str]:
    """Lines of tab-separated values: a kernel, its threads and shared memory, and registers chip by chip."""
    archs = sorted({usage.arch for usage in found}, key=lambda arch: int(re.match(r"\d+", arch)[0]))
    yield "\t".join(["kernel", "threads", "shared", *archs])
    for kernel in sorted({usage.kernel for usage in found}):
        mine = {usage.arch: usage for usage in found if usage.kernel == kernel}
        shared = max(usage.shared for usage in mine.values())
        yield "\t".join(map(str, [kernel, mine[archs[0]].threads, shared, *(mine[a].registers for a in archs)]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resources._csrc", description=__doc__.split("\n")[0])
    parser.add_argument("library", nargs="?", type=Path, default=library("all"), metavar="LIBRARY", help="a `_C.*.so`")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
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
