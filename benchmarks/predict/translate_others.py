"""Translates conversions, the float arithmetic of integer divisions, predicates, and exchanges between lanes."""

from __future__ import annotations

import re

import numpy as np

from benchmarks.predict.encoding import NOWHERE, UP, Encoding, P, Translated, handles, known, place


@handles("I2F", "I2FP")
def _integer_to_float(e: Encoding) -> Translated:
    """Translates I2F to float32, which divisions by a parameter use."""
    operands = e.operands
    d = place(operands[0])
    if "F64" in e.modifiers or "F16" in e.modifiers or "S8" in e.full or "U8" in e.full or operands[1][0] in "|-":
        return None, None
    is_signed = "U32" not in e.modifiers
    if "RP" in e.modifiers:
        return known([("a", e.value(operands[1]))], [f"v[{d}] = rounded_up(a, {is_signed})"], [d])
    x = "signed(a)" if is_signed else "a"
    return known([("a", e.value(operands[1]))], [f"v[{d}] = float_bits(np.asarray({x}, dtype=np.float64))"], [d])


@handles("F2I")
def _float_to_integer(e: Encoding) -> Translated:
    """Translates F2I from float32, towards zero."""
    operands = e.operands
    if (
        "F64" in e.modifiers
        or "U64" in e.modifiers
        or "S64" in e.modifiers
        or "TRUNC" not in e.modifiers
        or operands[1][0] in "-|"
    ):
        return None, None
    d = place(operands[0])
    return known([("a", e.value(operands[1]))], [f"v[{d}] = to_integer(a, {not e.unsigned})"], [d])


@handles("MUFU")
def _float_reciprocal(e: Encoding) -> Translated:
    """Translates MUFU.RCP. The results of other functions are not known."""
    operands = e.operands
    if not (e.modifiers[1] == "RCP" and operands[1][0] not in "-|"):
        return None, None
    d = place(operands[0])
    return known([("a", e.value(operands[1]))], [f"v[{d}] = reciprocal(a)"], [d])


@handles("FMUL", "FADD", "FFMA")
def _float_arithmetic(e: Encoding) -> Translated:
    """Translates FMUL, FADD and FFMA without signs."""
    operands = e.operands
    if any(x[0] in "-|" for x in operands[1:]):
        return None, None
    d = place(operands[0])
    names = "abc"[: len(operands) - 1]
    formula = {"FMUL": "x[0] * x[1]", "FADD": "x[0] + x[1]", "FFMA": "x[0] * x[1] + x[2]"}[e.op]
    lines = [f"x = [as_float(t) for t in ({', '.join(names)})]", f"v[{d}] = float_bits({formula})"]
    return known([(n, e.value(operands[1 + k])) for k, n in enumerate(names)], lines, [d])


@handles("HFMA2")
def _move_halves(e: Encoding) -> Translated:
    """Translates HFMA2 of zeros, which ptxas uses to move a constant."""
    operands = e.operands
    if not (len(operands) > 4 and operands[1].endswith("RZ") and operands[2].endswith("RZ")):
        return None, None
    d = place(operands[0])
    high, low = (int(np.float16(float(x)).view(np.uint16)) for x in operands[3:5])
    return [f"v[{d}] = {high << 16 | low}"], [d]


@handles("FCHK")
def _check_division(e: Encoding) -> Translated:
    """Translates FCHK: the slow path of a division is not for ordinary numbers."""
    operands = e.operands
    return [f"v[{place(operands[0])}] = False"], [place(operands[0])]


@handles("PLOP3")
def _predicate_logic(e: Encoding) -> Translated:
    """Translates PLOP3: any two functions of three predicates."""
    operands = e.operands
    outs = [place(operands[0]), place(operands[1])]
    if len(operands) < 6:
        return None, None
    first, second = int(operands[5], 16), int(operands[6], 16) if len(operands) > 6 else 0
    terms = f"({e.predicate(operands[2])}, {e.predicate(operands[3])}, {e.predicate(operands[4])})"
    lines = [f"v[{outs[0]}] = truth({first}, {terms})"]
    if outs[1] != NOWHERE:
        lines.append(f"v[{outs[1]}] = truth({second}, {terms})")
    return lines, outs


@handles("P2R", "UP2UR")
def _pack_predicates(e: Encoding) -> Translated:
    """Translates P2R: predicates to the bits of a register."""
    operands = e.operands
    d, mask = place(operands[0]), operands[3] if len(operands) > 3 else "0x7f"
    predicates = P if e.op == "P2R" else UP
    line = f"v[{d}] = packed_predicates(v, {predicates}, a, m)"
    return known([("a", e.value(operands[2])), ("m", e.value(mask))], [line], [d])


@handles("R2P", "UR2UP")
def _unpack_predicates(e: Encoding) -> Translated:
    """Translates R2P: the bits of a register to predicates."""
    operands = e.operands
    mask, predicates = int(operands[2], 16), P if e.op == "R2P" else UP
    byte = int(found[1]) if (found := re.search(r"\.B(\d)", operands[1])) else 0
    outs = [predicates + n for n in range(7) if mask >> n & 1]
    lines = [f"a = {e.value(operands[1].split('.')[0])}"]
    lines += [f"v[{x}] = None if a is None else (a >> {8 * byte + x - predicates} & 1) != 0" for x in outs]
    return lines, outs


@handles("R2UR")
def _to_uniform(e: Encoding) -> Translated:
    """Translates R2UR: the first lane's value to a uniform register."""
    operands = e.operands
    outs = [place(x) for x in operands[:-1]]
    d = next(x for x in outs if x < P or x == NOWHERE)
    return [f"v[{d}] = s.first_lane({e.value(operands[-1])})"] + [f"v[{w}] = None" for w in outs if w != d], outs


@handles("S2R", "S2UR", "CS2R")
def _read_special(e: Encoding) -> Translated:
    """Translates S2R: the thread's and the CTA's numbers."""
    operands = e.operands
    d = place(operands[0])
    wide = e.op == "CS2R" and "32" not in e.modifiers
    lines = [f"v[{d}] = s.special({operands[1]!r})"] + (
        [f"v[{d + 1}] = 0 if {operands[1]!r} == 'SRZ' else None"] if wide else []
    )
    return lines, [d, d + 1] if wide else [d]


@handles("LDC", "ULDC", "LDCU")
def _load_constant(e: Encoding) -> Translated:
    """Translates LDC: kernel parameters and sizes of the launch."""
    operands = e.operands
    d = place(operands[0])
    size = {"64": 8, "U8": 1, "S8": 1, "U16": 2, "S16": 2, "128": 16}.get(e.modifiers[-1], 4)
    found = re.match(r"c\[(0x[0-9a-f]+)\]\[([^\]]*)\]", operands[1])
    if not found or int(found[1], 16) != 0:
        return None, None
    offset = 0
    register = "0"
    for term in found[2].split("+"):
        if place(term) is not None:
            register = e.value(term)
        else:
            offset += int(term, 16)
    writes = [d + n for n in range(max(1, size // 4))]
    lines = [f"x = {register}"]
    for n, w in enumerate(writes):
        lines.append(f"v[{w}] = None if not isinstance(x, int) else s.constant({offset + 4 * n} + x, {min(size, 4)})")
    if e.modifiers[-1] in ("S8", "S16"):
        lines.append(f"if v[{d}] is not None: v[{d}] = sign_extended(v[{d}], {8 * size})")
    return lines, writes


@handles("SHFL")
def _shuffle_lanes(e: Encoding) -> Translated:
    """Translates SHFL."""
    operands = e.operands
    outs = [place(operands[0]), place(operands[1])]
    lines = [f"v[{outs[1]}] = shuffle({e.modifiers[1]!r}, {e.value(operands[2])}, {e.value(operands[3])})"]
    return [*lines, f"v[{outs[0]}] = True"], outs


@handles("VOTE", "VOTEU")
def _vote(e: Encoding) -> Translated:
    """Translates VOTE: whether a predicate holds in any or all lanes, or the mask of lanes."""
    operands = e.operands
    mode = e.modifiers[1]
    outs = [place(x) for x in operands[:-1]]
    lines = [f"x = {e.predicate(operands[-1])}"]
    for at in outs:
        if at < P:
            lines.append(f"v[{at}] = s.ballot(x)")
        elif at != NOWHERE:
            lines.append(f"v[{at}] = s.vote({mode!r}, x)")
    return lines, outs


@handles("ELECT")
def _elect(e: Encoding) -> Translated:
    """Translates ELECT: a predicate that holds in one lane."""
    operands = e.operands
    outs = [place(x) for x in operands[:-1]]
    return [f"v[{at}] = s.elected()" for at in outs if at >= P and at != NOWHERE], outs


@handles("USETMAXREG")
def _set_registers(e: Encoding) -> Translated:
    """Translates USETMAXREG, which always succeeds here."""
    operands = e.operands
    outs = [place(operands[0])] if place(operands[0]) is not None else []
    return [f"v[{w}] = True" for w in outs] or ["pass"], outs
