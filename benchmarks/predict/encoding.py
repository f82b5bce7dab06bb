"""The operands of an instruction as Python expressions, and the table of functions that translate instructions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.predict.instructions import STORES, names, width
from benchmarks.predict.values import WORD, float_bits

# Where each register file begins in the list of a group's values: R0, UR0, P0, UP0. RZ and PT have no place.
R, UR, P, UP, NOWHERE = 0, 256, 320, 328, 340
PLACES = 360

UNIFORM_TWINS = names("IADD3 IMAD LEA LOP3 SHF ISETP SEL MOV PRMT SGXT BMSK IABS POPC FLO BREV PLOP3 LOP IMNMX")
PREDICATE_ONLY = names("FSETP HSETP2 DSETP ISETP PLOP3 FCHK")

# Lines of Python that carry out an instruction, and the places that it writes; None for what is not understood.
Translated = tuple[list[str] | None, list[int] | None]
HANDLERS: dict[str, Callable[[Encoding], Translated]] = {}


def handles(*names: str) -> Callable:
    """Registers a function that translates the instructions of these names."""

    def register(function: Callable[[Encoding], Translated]) -> Callable[[Encoding], Translated]:
        HANDLERS.update(dict.fromkeys(names, function))
        return function

    return register


def is_predicate(text: str) -> bool:
    return re.match(r"!?U?P(\d|T)\b", text) is not None


def place(text: str) -> int | None:
    """Returns the place of a register or predicate, NOWHERE of RZ and PT, or None for anything else."""
    if not (found := re.match(r"(UR|R|UP|P)(\d+|Z|T)\b", text)):
        return None
    if found[2] in "ZT":
        return NOWHERE
    return {"R": R, "UR": UR, "P": P, "UP": UP}[found[1]] + int(found[2])


@dataclass(frozen=True)
class Encoding:
    """Holds an instruction, cut into its parts."""

    position: int
    op: str  # LDG
    full: str  # LDG.E.128
    modifiers: list[str]  # LDG, E, 128
    operands: list[str]

    @property
    def base(self) -> str:
        """Returns the name without the U of uniform instructions that compute the same."""
        return self.op[1:] if self.op.startswith("U") and self.op[1:] in UNIFORM_TWINS else self.op

    @property
    def unsigned(self) -> bool:
        return "U32" in self.modifiers or "U64" in self.modifiers

    def value(self, text: str, half: int = 0) -> str:
        """Returns an expression for a 32-bit operand without its sign; half 1: the upper one of a 64-bit operand."""
        text = text.strip().lstrip("-~|!").rstrip("|")
        if (at := place(text)) is not None:
            return "0" if at == NOWHERE else f"v[{at + half}]"
        if found := re.match(r"c\[0x0\]\[(0x[0-9a-f]+)\]", text):
            return f"s.constant({int(found[1], 16) + 4 * half})"
        if re.fullmatch(r"0x[0-9a-f]+|\d+", text):
            return str((int(text, 0) >> 32 * half) & WORD)
        if re.match(r"[+-]?(INF|QNAN|SNAN|\d*\.?\d+(e[+-]?\d+)?)$", text):
            number = text.replace("QNAN", "nan").replace("SNAN", "nan").replace("INF", "inf")
            return str(float_bits(np.float32(float(number))))
        return "None"

    def predicate(self, text: str) -> str:
        """Returns an expression for a predicate, which may be negated."""
        text = text.strip()
        at = place(text.lstrip("!"))
        if at is None:
            return "None"
        if text.startswith("!"):
            return "False" if at == NOWHERE else f"negated(v[{at}])"
        return "True" if at == NOWHERE else f"v[{at}]"


def address(text: str) -> tuple[str, int]:
    """Returns an expression for an address, and its size in registers, of [R2.64+UR4+0x10] or desc[UR6][R2.64+0x10]."""
    inner = re.findall(r"\[([^\[\]]*)\]", text)[-1]
    terms, wide = [], ".64" in inner
    for sign, term in re.findall(r"([+-]?)([^+-]+)", inner):
        base = term.split(".")[0]
        if (at := place(base)) is not None:
            if at == NOWHERE:
                continue
            if ".64" in term or (wide and base.startswith("UR")):
                terms.append(f"pair(v[{at}], v[{at + 1}])")
            else:
                terms.append(f"v[{at}]")
        else:
            terms.append(f"{sign or ''}{int(term, 16)}")
    return "total(" + ", ".join(terms) + ")", 2 if wide else 1


def unknown_writes(e: Encoding) -> list[int]:
    """Returns the registers that an instruction writes, if its results are not known."""
    op, operands = e.op, e.operands
    if op in STORES or op in ("STL", "BAR", "DEPBAR", "NOP", "WARPSYNC", "MEMBAR", "FENCE", "ERRBAR", "CCTL"):
        return []
    if not operands or place(operands[0]) is None:
        return []
    fronts = list(itertools.takewhile(is_predicate, operands))
    writes = [place(o) for o in fronts[:2] if place(o) != NOWHERE]
    rest = operands[len(fronts) :]
    first = place(rest[0]) if rest else None
    if first is None or first == NOWHERE or op in PREDICATE_ONLY:
        return writes
    count = 1
    if op == "HMMA":
        count = 4 if ".F32" in e.full else 2
    elif op in ("HGMMA", "QGMMA", "IGMMA"):
        count = int(re.search(r"64x(\d+)x", e.full)[1]) // 2
    elif op in ("LDG", "LDS", "LD", "LDL", "ATOM", "ATOMG", "ATOMS"):
        count = max(1, width(e.full) // 4)
    elif op == "LDSM":
        count = int(e.full.split(".")[-1]) if e.full.split(".")[-1].isdigit() else 1
    elif op in ("DADD", "DMUL", "DFMA", "CS2R", "I2F", "F2F") and (".64" in e.full or op[0] == "D" or op == "CS2R"):
        count = 2
    return writes + [first + n for n in range(count)]


def known(names_and_values: list[tuple[str, str]], result: list[str], writes: list[int]) -> Translated:
    """Returns lines that compute a result if all inputs are known; otherwise what is written becomes unknown."""
    lines = [f"{name} = {value}" for name, value in names_and_values]
    tests = [n for n, value in names_and_values if not re.fullmatch(r"\d+|True|False", value)]
    targets = " = ".join(f"v[{w}]" for w in writes)
    if any(value == "None" for _, value in names_and_values):
        return [f"{targets} = None"], writes
    if tests:
        lines.append("if " + " or ".join(f"{n} is None" for n in tests) + f": {targets} = None; return")
    return lines + result, writes


def carry_expression(name: str, text: str, extended: bool) -> str:
    """Returns the expression of a summand as its carry is defined: a negated number is its complement plus one."""
    if text.startswith("~") or (text.startswith("-") and extended):
        return f"({name} ^ WORD)"
    return f"(({name} ^ WORD) + 1)" if text.startswith("-") else name


def plain(name: str, text: str) -> str:
    """Returns the expression of an operand with its sign."""
    return f"(-{name})" if text.startswith("-") else f"({name} ^ WORD)" if text.startswith("~") else name
