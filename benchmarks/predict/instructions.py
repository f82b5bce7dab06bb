"""Kernels and their instructions, with the scheduling bits, from a cubin for compute capability 9.0."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import struct
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.predict.build import cache, output, tool


@dataclass
class Instruction:
    """Holds one instruction; `str` shows it with its scheduling bits."""

    address: int
    guard: str  # "@!P0" or ""
    op: str  # LDSM
    full: str  # LDSM.16.M88.4
    operands: str
    stall: int  # clocks until the warp's next instruction may issue
    yields: bool
    write: int  # the dependency barrier that its result releases, 7: none
    read: int  # the dependency barrier that is released when its operands are read, 7: none
    wait: int  # mask of the dependency barriers that it waits for
    target: int = -1  # of a branch

    def __str__(self) -> str:
        waits = "".join(str(i) if self.wait >> i & 1 else "-" for i in range(6))
        bars = f"W{self.write if self.write < 7 else '-'} R{self.read if self.read < 7 else '-'}"
        text = f"{self.guard:6} {self.full} {self.operands}"
        return f"{self.address:6x}  S{self.stall:02d} {'Y' if self.yields else '-'} {bars} {waits}  {text}"


@dataclass
class Kernel:
    """Holds a kernel of a cubin: its resources, where its parameters lie, and its code."""

    name: str
    cubin: Path | None = None
    symbol: int = 0  # its number in the cubin's table of symbols
    registers: int = 0
    shared: int = 0  # bytes of static shared memory
    parameters_at: int = 0x210  # in constant bank 0
    parameters_size: int = 0
    parameters: list[tuple[int, int]] = field(default_factory=list)  # (offset, size)
    sector_patterns: dict = field(default_factory=dict, repr=False)
    bank_patterns: dict = field(default_factory=dict, repr=False)
    conflicted: dict[int, float] = field(default_factory=dict, repr=False)  # clocks over the least, by position
    operations: dict = field(default_factory=dict, repr=False)  # by chip
    _compiled: object = None

    @functools.cached_property
    def code(self) -> list[Instruction]:
        return disassemble(self.cubin, self.symbol)

    @functools.cached_property
    def index(self) -> dict[int, int]:
        """Maps addresses to positions."""
        return {i.address: n for n, i in enumerate(self.code)}

    def compiled(self) -> Any:
        """Returns the instructions as functions (translate.py)."""
        if self._compiled is None:
            from benchmarks.predict.translate import Translator

            self._compiled = Translator(self)
        return self._compiled

    def loops(self) -> list[tuple[int, int]]:
        """Returns the positions of the first and last instruction of each loop."""
        found = {}
        for n, i in enumerate(self.code):
            if i.op == "BRA" and 0 <= i.target < i.address:
                first = self.index[i.target]
                found[first] = max(found.get(first, 0), n)
        return sorted(found.items())


def read_elf(data: bytes) -> tuple[dict[str, bytes], dict[str, int]]:
    """Returns the sections of a 64-bit ELF file by name, and the numbers of its functions' symbols."""
    start, size, count, names = struct.unpack_from("<Q10xHHH", data, 0x28)
    headers = [struct.unpack_from("<IIQQQQI", data, start + n * size) for n in range(count)]

    def text(table: int, at: int) -> str:
        at += headers[table][4]
        return data[at : data.index(b"\0", at)].decode()

    sections = {text(names, h[0]): data[h[4] : h[4] + h[5]] if h[1] != 8 else b"" for h in headers}
    functions = {}
    for kind, offset, length, strings in ((h[1], h[4], h[5], h[6]) for h in headers):
        for n in range(length // 24 if kind == 2 else 0):
            name, info = struct.unpack_from("<IB", data, offset + 24 * n)
            if info & 15 == 2:
                functions[text(strings, name)] = n
    return sections, functions


def read_info(kernel: Kernel, info: bytes) -> None:
    """Reads from a kernel's .nv.info section where its parameters lie."""
    at = 0
    while at + 4 <= len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form != 4:  # the value is in `size`
            continue
        body = info[at : at + size]
        at += size
        if attribute == 0x0A:  # PARAM_CBANK
            kernel.parameters_at, kernel.parameters_size = struct.unpack_from("<HH", body, 4)
        elif attribute == 0x17:  # KPARAM_INFO
            _, _, offset, flags = struct.unpack("<IHHI", body)
            kernel.parameters.append((offset, flags >> 18))
        elif attribute == 0x45:  # the same where parameters may take more than 4 KiB
            _, _, offset, length = struct.unpack("<IHHI", body)
            kernel.parameters.append((offset, length))
    kernel.parameters.sort()


def load(cubin: str | os.PathLike | bytes) -> dict[str, Kernel]:
    """Returns the kernels of a cubin, given as a file or as its contents, by their mangled names."""
    data = cubin if isinstance(cubin, bytes) else Path(cubin).read_bytes()
    kept = cache() / "cubins" / f"{hashlib.sha256(data).hexdigest()[:24]}.cubin"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
            file.write(data)
        os.replace(file.name, kept)
    sections, functions = read_elf(data)
    kernels = {n: Kernel(n, kept, at) for n, at in functions.items() if f".nv.info.{n}" in sections}
    for kernel in kernels.values():
        read_info(kernel, sections[f".nv.info.{kernel.name}"])
    usage = output([tool("cuobjdump"), "-res-usage", kept])
    for name, regs, shared in re.findall(r"Function (\S+):\s*REG:(\d+).*?SHARED:(\d+)", usage, re.S):
        if name in kernels:
            kernels[name].registers, kernels[name].shared = int(regs), int(shared)
    return kernels


def disassemble(cubin: Path, symbol: int) -> list[Instruction]:
    """Returns the instructions of a kernel and of functions that were compiled with it; keeps them beside the cubin."""
    kept = cubin.with_name(f"{cubin.stem}-{symbol}.json")
    if kept.exists():
        return [Instruction(*row) for row in json.loads(kept.read_text())]
    command = [tool("nvdisasm"), "-c", "-hex", "-fun", str(symbol), str(cubin)]
    lines = iter(output(command).splitlines())
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    pending: list[str] = []
    for line in lines:
        if found := re.match(r"([.$\w]+):\s*$", line):
            pending.append(found[1])
        elif found := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s*/\* 0x([0-9a-f]{16}) \*/", line):
            bits = int(re.search(r"0x([0-9a-f]{16})", next(lines))[1], 16) >> 41  # 105 of 128
            address = int(found[1], 16)
            labels |= dict.fromkeys(pending, address)
            pending = []
            guard, _, rest = found[2].partition(" ") if found[2].startswith("@") else ("", "", found[2])
            full, _, operands = rest.strip().partition(" ")
            code.append(
                Instruction(
                    address, guard, full.split(".")[0], full, operands.strip(), stall=bits & 15,
                    yields=not bits >> 4 & 1, write=bits >> 5 & 7, read=bits >> 8 & 7, wait=bits >> 11 & 63,
                )
            )  # fmt: skip
    for i in code:
        if i.op in ("BRA", "CALL", "BSSY", "WARPSYNC") and (label := re.search(r"`\(([^)]+)\)", i.operands)):
            i.target = labels.get(label[1], -1)
    temporary = kept.with_name(f"{kept.name}.{os.getpid()}")
    temporary.write_text(json.dumps([list(vars(i).values()) for i in code]))
    temporary.replace(kept)
    return code


def names(text: str) -> set[str]:
    """Returns the names in a text, such as those of instructions."""
    return set(text.split())


STORES = ("ST", "STG", "STS", "STL", "STSM", "RED", "REDG", "LDGSTS", "ATOMS")


def reads(i: Instruction) -> list[tuple[int, int, bool]]:
    """Returns (slot, register, whether it stays in the slot's cache) of each register that an instruction reads."""
    operands = [o.strip() for o in i.operands.split(",")]
    sources = operands if i.op in STORES else operands[1:]
    result = []
    for slot, operand in enumerate(sources):
        if not (found := re.search(r"(?<![A-Z])R(\d+)(\.reuse)?(\.64)?", operand)):
            continue
        count = 2 if found[3] else 1
        if i.op == "HMMA":
            count = (4, 2, 4)[slot] if "16816" in i.full else (2, 1, 4)[slot]
        elif i.op in STORES and slot > 0 and i.op != "LDGSTS":
            count = max(1, width(i.full) // 4) if i.op != "STSM" else 4
        elif ".WIDE" in i.full and slot == 2:
            count = 2
        result += [(slot, int(found[1]) + n, bool(found[2])) for n in range(count)]
    return result


def width(full: str) -> int:
    """Returns the bytes per lane of a load or store."""
    for bits, size in ((".128", 16), (".64", 8), (".U16", 2), (".S16", 2), (".U8", 1), (".S8", 1)):
        if bits in full:
            return size
    return 4
