"""Translates accesses to memory, copies and barriers."""

from __future__ import annotations

import re

from benchmarks.predict.encoding import NOWHERE, Encoding, P, Translated, address, handles, place, unknown_writes
from benchmarks.predict.instructions import width


@handles("STL")
def _store_local(e: Encoding) -> Translated:
    """Translates STL: spilled values are kept, so that addresses among them stay known."""
    operands = e.operands
    expression, _ = address(operands[0])
    source = place(operands[1])
    words = max(1, width(e.full) // 4)
    sources = ["0" if source == NOWHERE else f"v[{source + n}]" for n in range(words)]
    return [f"s.store_local({expression}, ({', '.join(sources)},))"], []


@handles("LDL")
def _load_local(e: Encoding) -> Translated:
    """Translates LDL."""
    operands = e.operands
    expression, _ = address(operands[1])
    d = place(operands[0])
    words = [d + n for n in range(max(1, width(e.full) // 4))]
    return [f"x = {expression}"] + [f"v[{w}] = s.load_local(x, {4 * n})" for n, w in enumerate(words)], words


@handles("LDG", "LD", "STG", "ST", "RED", "REDG", "ATOM", "ATOMG", "LDGSTS")
def _touch_global(e: Encoding) -> Translated:
    """Translates accesses to global memory: which sectors they touch."""
    operands = e.operands
    text = next(x for x in reversed(operands) if "[" in x)
    expression, _ = address(text)
    where = "None"
    if e.op == "LDGSTS":
        where = address(operands[0])[0]
        allow = e.predicate(operands[2]) if len(operands) > 2 else "True"
        return [f"s.touch_global({e.position}, {expression}, {width(e.full)}, {allow}, {where})"], []
    lines = [f"x = {expression}", f"s.touch_global({e.position}, x, {width(e.full)}, True, None)"]
    writes = unknown_writes(e)
    predicates = [w for w in writes if w >= P]
    words = [w for w in writes if w < P]
    lines += [f"v[{w}] = s.load_global(x, {4 * n}, {min(4, width(e.full))})" for n, w in enumerate(words)]
    return lines + [f"v[{w}] = None" for w in predicates], writes


@handles("LDS", "STS", "LDSM", "STSM", "ATOMS")
def _touch_shared(e: Encoding) -> Translated:
    """Translates accesses to shared memory: which banks they touch."""
    operands = e.operands
    text = operands[1] if e.op in ("LDS", "LDSM") else next(x for x in operands if "[" in x)
    expression, _ = address(text)
    kind = f"M{e.full.split('.')[-1]}" if e.op in ("LDSM", "STSM") else str(width(e.full))
    writes = unknown_writes(e) if e.op != "STS" and e.op != "STSM" else []
    return [f"s.touch_shared({e.position}, {expression}, {kind!r})"] + [f"v[{w}] = None" for w in writes], writes


@handles("SYNCS")
def _mbarrier(e: Encoding) -> Translated:
    """Translates SYNCS: an mbarrier is initialised, arrived at, or waited for."""
    operands = e.operands
    if len(e.modifiers) == 1 or "CCTL" in e.modifiers:
        return ["pass"], []
    expression, _ = address(next(x for x in operands if "[" in x))
    if "EXCH" in e.modifiers:
        return [f"s.barrier('init', {e.position}, {expression}, {e.value(operands[-1])}, '')"], []
    if "ARRIVE" in e.modifiers:
        tail = [x for x in e.modifiers if re.match(r"A\dT\w", x)]
        return [
            f"s.barrier('arrive', {e.position}, {expression}, {e.value(operands[-1])}, {tail[0] if tail else ''!r})"
        ], []
    if "PHASECHK" in e.modifiers:
        d = place(operands[0])
        return [f"s.barrier('wait', {e.position}, {expression}, {e.value(operands[-1])}, '')", f"v[{d}] = True"], [d]
    return None, None


@handles("ARRIVES")
def _arrive_after_copies(e: Encoding) -> Translated:
    """Translates ARRIVES: an arrival at an mbarrier once the warp's copies are done."""
    operands = e.operands
    expression, _ = address(operands[-1])
    return [f"s.barrier('arrive', {e.position}, {expression}, 0, 'A1T0')"], []


@handles("UTMALDG", "UTMASTG", "UTMAREDG", "UBLKCP", "UBLKRED")
def _bulk_copy(e: Encoding) -> Translated:
    """Translates bulk copies (TMA)."""
    operands = e.operands
    first = place(operands[0].strip("[]"))
    descriptor = place(operands[1].strip("[]").split(".")[0])
    coordinates = ", ".join(f"v[{first + (2 if e.op == 'UTMALDG' else 1) + n}]" for n in range(5))
    size = e.value(operands[2]) if e.op.startswith("UBLK") and len(operands) > 2 else "None"
    load = e.op == "UTMALDG" or (e.op == "UBLKCP" and e.full.split(".")[1:2] == ["S"])
    barrier = f"v[{first + 1}]" if load else "None"
    target = f"pair(v[{descriptor}], v[{descriptor + 1}])"
    return [f"s.bulk({e.position}, {barrier}, {target}, ({coordinates}), {size}, {load})"], []


@handles("BAR")
def _named_barrier(e: Encoding) -> Translated:
    """Translates BAR: __syncthreads or a named barrier."""
    operands = e.operands
    if (operands and place(operands[0]) is not None) or (len(operands) > 1 and place(operands[1]) is not None):
        count = e.value(operands[1]) if len(operands) > 1 else "0"
        return [f"s.named_barrier({e.position}, {e.value(operands[0])}, {count})"], []
    return ["pass"], []
