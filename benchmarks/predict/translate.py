"""Translates a kernel's instructions to Python functions that carry them out for a group of warps."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# Importing these three fills the table HANDLERS.
from benchmarks.predict import translate_integers, translate_memory, translate_others, values  # noqa: F401
from benchmarks.predict.encoding import HANDLERS, NOWHERE, Encoding, is_predicate, place, unknown_writes
from benchmarks.predict.instructions import Instruction, Kernel

CONTROL = set(["BRA", "EXIT", "CALL", "RET", "BSSY", "BSYNC", "BRX", "BREAK", "JMP", "WARPSYNC"])


@dataclass(slots=True)
class Step:
    """Holds an instruction that is ready to be carried out."""

    guard: int = -1  # the predicate's place, or -1
    negative: bool = False
    writes: tuple[int, ...] = ()
    run: Callable[[Any], Any] | bool | None = None  # takes the group; None: what it writes becomes unknown
    control: str = ""  # the name of an instruction that decides what comes next; "never": its guard is false


class Translator:
    """Translates all instructions of a kernel; `steps` has one step per position."""

    def __init__(self, kernel: Kernel):
        self.lines: list[str] = []
        self.steps = [self._step(position, i) for position, i in enumerate(kernel.code)]
        space = {name: value for name, value in vars(values).items() if not name.startswith("__")}
        exec(compile("\n".join(self.lines), f"<{kernel.name[:40]}>", "exec"), space)
        for position, step in enumerate(self.steps):
            step.run = space.get(f"i{position}")

    def _step(self, position: int, i: Instruction) -> Step:
        step = Step()
        if i.guard:
            step.guard, step.negative = place(i.guard.lstrip("@!")), "!" in i.guard
            if step.guard == NOWHERE:
                step.guard = -1
                if step.negative:
                    step.control = "never"
                    return step
        e = Encoding(position, i.op, i.full, i.full.split("."), _operands(i))
        if i.op in CONTROL:
            self._control(step, e)
            return step
        lines, writes = HANDLERS[e.base](e) if e.base in HANDLERS else (None, None)
        if writes is None:
            lines, writes = None, unknown_writes(e)
        step.writes = tuple(dict.fromkeys(w for w in writes if w != NOWHERE))
        if lines is not None:
            self._emit(position, lines)
        return step

    def _control(self, step: Step, e: Encoding) -> None:
        """Translates the second predicate of a branch, and the address of a return."""
        step.control = e.op
        if e.op == "BRA" and ("DIV" in e.modifiers or "CONV" in e.modifiers):
            step.control = ""
        elif e.op == "BRA" and is_predicate(e.operands[0]):
            self._emit(e.position, [f"return {e.predicate(e.operands[0])}"])
        elif e.op == "RET":
            self._emit(e.position, [f"return v[{place(e.operands[0].split()[0])}]"])

    def _emit(self, position: int, lines: Sequence[str]) -> None:
        self.lines += [f"def i{position}(s):", " v = s.values", *(" " + line for line in lines)]


def _operands(i: Instruction) -> list[str]:
    """Splits the operands. Negative numbers become their complement; a minus stays where a register is negated."""
    texts = [text.strip() for text in re.split(r",(?![^\[]*\])", i.operands)] if i.operands else []
    return [hex(int(t, 16) & (1 << 64) - 1) if re.match(r"-0x[0-9a-f]+$", t) else t for t in texts]
