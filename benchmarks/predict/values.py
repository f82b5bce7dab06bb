"""Arithmetic on what registers hold, for all lanes of a group of warps at once.

A value is an int where all lanes agree, an array of int64 with one number per lane where they differ, or None where it
is not known: what was loaded from memory, and most results of floating-point units. A predicate is a bool, an array of
bools or None. The functions that instructions are translated to call what is here.
"""

from __future__ import annotations

import itertools

import numpy as np

WORD = 0xFFFFFFFF


def signed(x):
    """Of 32 bits."""
    return (x ^ 0x80000000) - 0x80000000


def pair(low, high):
    """64 bits of two registers, signed."""
    if low is None or high is None:
        return None
    if isinstance(high, int):
        high = signed(high)
    return low | (high << 32)


def either(condition, yes, no):
    """yes or no, by a bool or by a lane's."""
    if condition is None:
        return yes if yes is no or (isinstance(yes, int) and isinstance(no, int) and yes == no) else None
    if isinstance(condition, (bool, np.bool_)):
        return yes if condition else no
    return None if yes is None or no is None else np.where(condition, yes, no)


def both(a, b):
    if a is False or b is False:
        return False
    return None if a is None or b is None else a & b


def any_of(a, b):
    if a is True or b is True:
        return True
    return None if a is None or b is None else a | b


def exclusive(a, b):
    return None if a is None or b is None else a ^ b


def negated(a):
    return None if a is None else (not a) if isinstance(a, (bool, np.bool_)) else ~a


COMBINE = {"AND": both, "OR": any_of, "XOR": exclusive}


def compare(kind: str, a, b, unsigned: bool):
    if kind == "T" or kind == "F":
        return kind == "T"
    if a is None or b is None:
        return None
    if not unsigned:
        a, b = a ^ 0x80000000, b ^ 0x80000000
    return {
        "LT": lambda: a < b,
        "LE": lambda: a <= b,
        "GT": lambda: a > b,
        "GE": lambda: a >= b,
        "EQ": lambda: a == b,
        "NE": lambda: a != b,
    }[kind]()


def lut3(table: int, a, b, c):
    """LOP3 and PLOP3: any function of three bits."""
    result = 0
    for minterm in range(8):
        if table >> minterm & 1:
            term = (
                (a if minterm & 4 else a ^ WORD) & (b if minterm & 2 else b ^ WORD) & (c if minterm & 1 else c ^ WORD)
            )
            result = result | term
    return result


COMMON_LUTS = {
    0xC0: lambda a, b, c: a & b,
    0xFC: lambda a, b, c: a | b,
    0x3C: lambda a, b, c: a ^ b,
    0x33: lambda a, b, c: b ^ WORD,
    0xFE: lambda a, b, c: a | b | c,
    0x96: lambda a, b, c: a ^ b ^ c,
    0xF8: lambda a, b, c: a | (b & c),
    0xEA: lambda a, b, c: (a & b) | c,
    0x80: lambda a, b, c: a & b & c,
}


def prmt(a, selector, b):
    result = 0
    for i in range(4):
        select = selector >> 4 * i & 7
        byte = (a >> 8 * select if select < 4 else b >> 8 * (select - 4)) & 255
        if selector >> 4 * i & 8:
            byte = (byte >> 7) * 255
        result = result | byte << 8 * i
    return result


def as_float(x):
    return np.asarray(x, dtype=np.uint32).view(np.float32)


def float_bits(x):
    bits = np.asarray(x, dtype=np.float32).view(np.uint32)
    return int(bits) if bits.ndim == 0 else bits.astype(np.int64)


def rounded_up(x, is_signed: bool):
    """An integer as float32, rounded towards +inf."""
    value = np.asarray(signed(x) if is_signed else x, dtype=np.float64)
    near = value.astype(np.float32)
    near = np.where(near.astype(np.float64) < value, np.nextafter(near, np.float32(np.inf)), near)
    return float_bits(near.astype(np.float32))


def to_integer(x, is_signed: bool):
    """float32 to an integer towards zero, as F2I saturates."""
    low, high = (-(2.0**31), 2.0**31 - 1) if is_signed else (0.0, 2.0**32 - 1)
    value = np.clip(np.nan_to_num(np.trunc(as_float(x).astype(np.float64))), low, high).astype(np.int64) & WORD
    return int(value) if value.ndim == 0 else value


def shuffle(mode: str, x, lane):
    """Of whole warps."""
    if x is None or isinstance(x, int):
        return x
    if lane is None:
        return None
    lanes = np.arange(32)
    by = (lane if isinstance(lane, int) else lane.reshape(-1, 32)) & 31
    source = {
        "IDX": lambda: np.broadcast_to(by, (len(x) // 32, 32)),
        "BFLY": lambda: np.broadcast_to(lanes ^ by, (len(x) // 32, 32)),
        "UP": lambda: np.broadcast_to(np.where(lanes - by < 0, lanes, lanes - by), (len(x) // 32, 32)),
        "DOWN": lambda: np.broadcast_to(np.where(lanes + by > 31, lanes, lanes + by), (len(x) // 32, 32)),
    }[mode]()
    return np.take_along_axis(x.reshape(-1, 32), source, 1).reshape(-1)


def total(*terms):
    result = 0
    for term in terms:
        if term is None:
            return None
        result = result + term
    return result


def clipped(n, most):
    return min(n, most) if isinstance(n, int) else np.minimum(n, most)


def funnel_left(a, c, n, high):
    if isinstance(a, int) and isinstance(c, int) and isinstance(n, int):
        whole = (a | c << 32) << n
        return (whole >> 32 if high else whole) & WORD
    if not high:
        return np.where(np.asarray(n) > 31, 0, (a << np.minimum(n, 31)) & WORD)
    n = np.minimum(n, 32)
    return ((c << np.minimum(n, 31)) * (np.asarray(n) < 32) | (np.asarray(a) >> (32 - n))) & WORD


def funnel_right(a, c, n, high, arithmetic):
    if isinstance(a, int) and isinstance(c, int) and isinstance(n, int):
        whole = a | (signed(c) if arithmetic else c) << 32
        return (whole >> n >> 32 if high else whole >> n) & WORD
    upper = np.asarray(signed(c) if arithmetic else c)
    if high:
        return (upper >> n) & WORD
    low = np.asarray(a) >> np.minimum(n, 32)
    return (
        np.where(
            np.asarray(n) > 31, upper >> np.maximum(np.asarray(n) - 32, 0), low | (upper << (32 - np.minimum(n, 31)))
        )
        & WORD
    )


def extended_compare(kind, a, b, low, unsigned):
    """Of upper words, where `low` is the lower ones' result."""
    if kind == "NE":
        return any_of(compare("NE", a, b, unsigned), low)
    if kind == "EQ":
        return both(compare("EQ", a, b, unsigned), low)
    strict = compare(kind[0] + "T", a, b, unsigned)
    return any_of(strict, both(compare("EQ", a, b, unsigned), low))


def truth(table, terms):
    if any(t is None for t in terms):
        # Known where the unknown inputs make no difference.
        results = set()
        for filled in itertools.product(*[(False, True) if t is None else (t,) for t in terms]):
            if any(not isinstance(t, (bool, np.bool_)) for t in filled):
                return None
            results.add(bool(table >> (4 * filled[0] + 2 * filled[1] + filled[2]) & 1))
        return results.pop() if len(results) == 1 else None
    a, b, c = terms
    if all(isinstance(t, (bool, np.bool_)) for t in terms):
        return bool(table >> (4 * int(a) + 2 * int(b) + int(c)) & 1)
    return (
        table >> (4 * np.asarray(a, dtype=np.int64) + 2 * np.asarray(b, dtype=np.int64) + np.asarray(c, dtype=np.int64))
        & 1
    ) != 0


def packed_predicates(v, first, a, mask):
    result = a & ~mask & WORD
    for n in range(7):
        if mask >> n & 1:
            p = v[first + n]
            if p is None:
                return None
            result = result | ((p * 1 if isinstance(p, (bool, np.bool_)) else p.astype(np.int64)) << n)
    return result


def sign_extended(a, n):
    if isinstance(n, int) and n >= 32:
        return a
    top = 1 << (n - 1)
    return (((a & ((1 << n) - 1)) ^ top) - top) & WORD


def bit_count(a):
    return a.bit_count() if isinstance(a, int) else np.array([int(x).bit_count() for x in a])


def leading_one(a):
    if isinstance(a, int):
        return a.bit_length() - 1 & WORD
    return np.array([int(x).bit_length() - 1 & WORD for x in a])


def reversed_bits(a):
    turn = lambda x: int(f"{int(x):032b}"[::-1], 2)  # noqa: E731
    return turn(a) if isinstance(a, int) else np.array([turn(x) for x in a])


def reciprocal(a):
    with np.errstate(divide="ignore"):
        return float_bits(np.float32(1) / as_float(a))
