"""Translates integer arithmetic."""

from __future__ import annotations

from benchmarks.predict.encoding import (
    NOWHERE,
    Encoding,
    Translated,
    carry_expression,
    handles,
    is_predicate,
    known,
    place,
    plain,
)
from benchmarks.predict.values import COMBINE, COMMON_LUTS


@handles("IADD3", "IADD")
def _add(e: Encoding) -> Translated:
    """Translates IADD3: a sum of three, with carries in and out."""
    operands = e.operands
    d, outs, rest = place(operands[0]), [], operands[1:]
    while is_predicate(rest[0]):
        outs.append(place(rest[0]))
        rest = rest[1:]
    sources, carries = rest[:3], rest[3:]
    if e.base == "IADD":
        sources, carries = rest[:2], rest[2:]
    extended = "X" in e.modifiers
    if "64" in e.modifiers:  # UIADD3.64
        named = [(f"x{n}", f"pair({e.value(t)}, {e.value(t, 1)})") for n, t in enumerate(sources)]
        total = " + ".join(plain(f"x{n}", t) for n, t in enumerate(sources))
        return known(named, [f"t = {total}", f"v[{d}] = t & WORD; v[{d + 1}] = t >> 32 & WORD"], [d, d + 1])
    named = [(f"x{n}", e.value(t)) for n, t in enumerate(sources)]
    terms = [carry_expression(f"x{n}", t, extended) for n, t in enumerate(sources)]
    if extended:
        for n, carry in enumerate(carries):
            named.append((f"k{n}", e.predicate(carry)))
            terms.append(f"k{n}")
    result = [f"t = {' + '.join(terms)}", f"v[{d}] = t & WORD"]
    for n, at in enumerate(outs):
        result.append(f"v[{at}] = t >= {(n + 1) << 32}")
    return known(named, result, [d, *outs])


@handles("VIADD")
def _add_two(e: Encoding) -> Translated:
    """Translates VIADD: a sum of two."""
    operands = e.operands
    d = place(operands[0])
    return known(
        [("a", e.value(operands[1])), ("b", e.value(operands[2]))],
        [f"v[{d}] = ({plain('a', operands[1])} + {plain('b', operands[2])}) & WORD"],
        [d],
    )


@handles("IMAD")
def _multiply_add(e: Encoding) -> Translated:
    """Translates IMAD: a product and a sum, of 32 bits, of 64 (WIDE), or the upper half (HI)."""
    operands = e.operands
    d = place(operands[0])
    rest, outs = operands[1:], []
    while is_predicate(rest[0]):
        outs.append(place(rest[0]))
        rest = rest[1:]
    a, b, c, *carry = rest
    named = [("a", e.value(a)), ("b", e.value(b))]
    wide, high = "WIDE" in e.modifiers, "HI" in e.modifiers
    sign = (lambda n: n) if e.unsigned or not (wide or high) else (lambda n: f"signed({n})")
    product = f"{sign('a')} * {sign('b')}"
    if a.startswith("-") != b.startswith("-"):
        product = f"-({product})"
    if wide or high:
        named.append(("c", f"pair({e.value(c)}, {e.value(c, 1)})" if place(c) != NOWHERE else "0"))
    else:
        named.append(("c", e.value(c)))
    if carry and "X" in e.modifiers:
        named.append(("k", e.predicate(carry[0])))
    extra = " + k" if carry and "X" in e.modifiers else ""
    minus = "(c ^ WORD)" if c.startswith("-") and "X" in e.modifiers else plain("c", c)
    if wide:
        result = [f"t = {product} + {minus}{extra}", f"v[{d}] = t & WORD; v[{d + 1}] = t >> 32 & WORD"]
        if outs:
            result.append("; ".join(f"v[{at}] = None" for at in outs))
        return known(named, result, [d, d + 1, *outs])
    shift = " >> 32" if high else ""
    result = [f"t = {product} + {minus}{extra}", f"v[{d}] = t{shift} & WORD"]
    if outs:
        result.append("; ".join(f"v[{at}] = None" for at in outs))
    return known(named, result, [d, *outs])


@handles("LEA")
def _shift_add(e: Encoding) -> Translated:
    """Translates LEA: a shifted number and another one, also of the upper half of an address (HI)."""
    operands = e.operands
    d, rest, outs = place(operands[0]), operands[1:], []
    while is_predicate(rest[0]):
        outs.append(place(rest[0]))
        rest = rest[1:]
    high, extended, sign = "HI" in e.modifiers, "X" in e.modifiers, "SX32" in e.modifiers
    a, b = rest[0], rest[1]
    named = [("a", e.value(a)), ("b", e.value(b))]
    if high and not sign:
        named.append(("c", e.value(rest[2])))
        rest = rest[3:]
    else:
        rest = rest[2:]
    shift = e.value(rest[0])
    if extended and len(rest) > 1:
        named.append(("k", e.predicate(rest[1])))
    plus = " + k" if extended and len(rest) > 1 else ""
    if high:
        whole = "signed(a)" if sign else "pair(a, c)"
        if a.startswith("-"):
            whole = f"(-{whole})"
        total = f"({whole} << {shift} >> 32 & WORD)"
        if not sign:  # the upper half of 64 bits, of which shifting loses none
            total = f"(({whole} >> (32 - {shift})) & WORD)" if shift != "0" else "(c & WORD)"
    else:
        total = f"({plain('a', a)} << {shift} & WORD)"
    result = [f"t = {total} + {carry_expression('b', b, extended)}{plus}", f"v[{d}] = t & WORD"]
    for n, at in enumerate(outs):
        result.append(f"v[{at}] = t >= {(n + 1) << 32}")
    return known(named, result, [d, *outs])


@handles("LOP3")
def _logic(e: Encoding) -> Translated:
    """Translates LOP3: any function of three bits, given as a table of eight bits."""
    operands = e.operands
    outs, rest = [], operands
    if is_predicate(operands[0]):
        outs, rest = [place(operands[0])], operands[1:]
    d = place(rest[0])
    table = int(rest[4], 16)
    named = [(n, e.value(rest[1 + k])) for k, n in enumerate("abc")]
    texts = [f"({n} ^ WORD)" if rest[1 + k].startswith("~") else n for k, n in enumerate("abc")]
    # An input that the function does not depend on may be unknown.
    for k, bit in enumerate((4, 2, 1)):
        if all((table >> m & 1) == (table >> (m ^ bit) & 1) for m in range(8)):
            named[k] = (named[k][0], "0")
    function = f"COMMON_LUTS[{table}]" if table in COMMON_LUTS else f"lut3({table}, "
    call = f"{function}({', '.join(texts)})" if table in COMMON_LUTS else f"{function}{', '.join(texts)})"
    result = [f"t = {call}", f"v[{d}] = t"] + [f"v[{at}] = t != 0" for at in outs]
    return known(named, result, [d, *outs])


@handles("LOP")
def _logic_of_two(e: Encoding) -> Translated:
    """Translates LOP: AND, OR or XOR."""
    operands = e.operands
    d = place(operands[0])
    sign = {"AND": "&", "OR": "|", "XOR": "^"}[e.modifiers[1]]
    return known(
        [("a", e.value(operands[1])), ("b", e.value(operands[2]))],
        [f"v[{d}] = {plain('a', operands[1])} {sign} {plain('b', operands[2])}"],
        [d],
    )


@handles("SHF")
def _funnel_shift(e: Encoding) -> Translated:
    """Translates SHF: a shift of 64 bits in two registers, of which one half is kept."""
    operands = e.operands
    d = place(operands[0])
    a, shift, c = e.value(operands[1]), e.value(operands[2]), e.value(operands[3])
    left, high, arithmetic = "L" in e.modifiers, "HI" in e.modifiers, "S32" in e.modifiers or "S64" in e.modifiers
    count = "(n & 31)" if "W" in e.modifiers else "clipped(n, 63)"
    right = f"funnel_right(a, c, {count}, {high}, {arithmetic})"
    result = f"funnel_left(a, c, {count}, {high})" if left else right
    return known([("a", a), ("n", shift), ("c", c)], [f"v[{d}] = {result}"], [d])


@handles("ISETP")
def _compare_integers(e: Encoding) -> Translated:
    """Translates ISETP: a comparison, combined with another predicate."""
    operands = e.operands
    outs = [place(operands[0]), place(operands[1])]
    kind, combine = e.modifiers[1], next(x for x in e.modifiers[2:] if x in COMBINE)
    extended = "EX" in e.modifiers
    lines = [f"a = {e.value(operands[2])}", f"b = {e.value(operands[3])}", f"k = {e.predicate(operands[4])}"]
    a = plain("a", operands[2]) if operands[2][0] in "-~" else "a"
    b = plain("b", operands[3]) if operands[3][0] in "-~" else "b"
    if a != "a" or b != "b":
        lines.append(f"if a is not None: a = {a} & WORD")
        lines.append(f"if b is not None: b = {b} & WORD")
    if extended:
        low = e.predicate(operands[5])
        lines.append(f"t = extended_compare({kind!r}, a, b, {low}, {e.unsigned})")
    else:
        lines.append(f"t = compare({kind!r}, a, b, {e.unsigned})")
    lines.append(f"v[{outs[0]}] = COMBINE[{combine!r}](t, k)")
    if outs[1] != NOWHERE:
        lines.append(f"v[{outs[1]}] = COMBINE[{combine!r}](negated(t), k)")
    return lines, outs


@handles("IMNMX", "VIMNMX")
def _minimum_or_maximum(e: Encoding) -> Translated:
    """Translates IMNMX: the smaller or larger of two, which a predicate decides."""
    operands = e.operands
    d = place(operands[0])
    lines = [
        f"t = compare('LT', a, b, {e.unsigned})",
        f"t = either({e.predicate(operands[3])}, either(t, a, b), either(t, b, a))",
    ]
    if "RELU" in e.modifiers:
        lines.append("t = either(compare('GT', t, 0, False), t, 0)")
    return known([("a", e.value(operands[1])), ("b", e.value(operands[2]))], [*lines, f"v[{d}] = t"], [d])


@handles("VIADDMNMX")
def _add_minimum_or_maximum(e: Encoding) -> Translated:
    """Translates VIADDMNMX: a sum of two, then the smaller or larger with a third."""
    operands = e.operands
    d = place(operands[0])
    lines = [
        f"a = ({plain('a', operands[1])} + {plain('b', operands[2])}) & WORD",
        f"t = compare('LT', a, c, {e.unsigned})",
    ]
    lines.append(f"t = either({e.predicate(operands[4])}, either(t, a, c), either(t, c, a))")
    if "RELU" in e.modifiers:
        lines.append("t = either(compare('GT', t, 0, False), t, 0)")
    return known([(n, e.value(operands[1 + k])) for k, n in enumerate("abc")], [*lines, f"v[{d}] = t"], [d])


@handles("SEL", "FSEL")
def _select(e: Encoding) -> Translated:
    """Translates SEL: one of two, which a predicate decides."""
    operands = e.operands
    d = place(operands[0])
    if e.base == "FSEL" and any(x[0] in "-|" for x in operands[1:3]):
        return None, None
    lines = [f"a = {e.value(operands[1])}", f"b = {e.value(operands[2])}"]
    if operands[1].startswith("-") or operands[2].startswith("-"):
        lines.append(f"a = None if a is None else {plain('a', operands[1])} & WORD")
        lines.append(f"b = None if b is None else {plain('b', operands[2])} & WORD")
    return [*lines, f"v[{d}] = either({e.predicate(operands[3])}, a, b)"], [d]


@handles("MOV")
def _move(e: Encoding) -> Translated:
    """Translates MOV."""
    operands = e.operands
    d = place(operands[0])
    if "64" in e.modifiers:
        return [f"v[{d}] = {e.value(operands[1])}", f"v[{d + 1}] = {e.value(operands[1], 1)}"], [d, d + 1]
    return [f"v[{d}] = {e.value(operands[1])}"], [d]


@handles("PRMT")
def _permute_bytes(e: Encoding) -> Translated:
    """Translates PRMT: four bytes chosen from eight."""
    operands = e.operands
    d = place(operands[0])
    if len(e.modifiers) > 1:
        return None, None
    return known(
        [("a", e.value(operands[1])), ("n", e.value(operands[2])), ("b", e.value(operands[3]))],
        [f"v[{d}] = prmt(a, n, b)"],
        [d],
    )


@handles("SGXT")
def _extend_sign(e: Encoding) -> Translated:
    """Translates SGXT: the low bits, with their sign or with zeros."""
    operands = e.operands
    d = place(operands[0])
    line = "a & ((1 << n) - 1)" if e.unsigned else "sign_extended(a, n)"
    return known([("a", e.value(operands[1])), ("n", e.value(operands[2]))], [f"v[{d}] = {line}"], [d])


@handles("BMSK")
def _bit_mask(e: Encoding) -> Translated:
    """Translates BMSK: a mask of so many ones at a position."""
    operands = e.operands
    d = place(operands[0])
    return known(
        [("a", e.value(operands[1])), ("n", e.value(operands[2]))], [f"v[{d}] = ((1 << n) - 1 << a) & WORD"], [d]
    )


@handles("IABS")
def _absolute(e: Encoding) -> Translated:
    """Translates IABS."""
    operands = e.operands
    d = place(operands[0])
    return known([("a", e.value(operands[1]))], [f"v[{d}] = abs(signed(a)) & WORD"], [d])


@handles("POPC")
def _count_bits(e: Encoding) -> Translated:
    """Translates POPC: the number of ones."""
    operands = e.operands
    d = place(operands[0])
    return known([("a", e.value(operands[1]))], [f"v[{d}] = bit_count(a)"], [d])


@handles("FLO")
def _find_leading_one(e: Encoding) -> Translated:
    """Translates FLO: the position of the highest one."""
    operands = e.operands
    d = place(operands[0])
    if "SH" in e.modifiers or not e.unsigned:
        return None, None
    return known([("a", e.value(operands[1]))], [f"v[{d}] = leading_one(a)"], [d])


@handles("BREV")
def _reverse_bits(e: Encoding) -> Translated:
    """Translates BREV."""
    operands = e.operands
    d = place(operands[0])
    return known([("a", e.value(operands[1]))], [f"v[{d}] = reversed_bits(a)"], [d])
