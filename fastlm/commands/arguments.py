"""How options of configurations become arguments of the command line. Imports no torch."""

from __future__ import annotations

import argparse
from dataclasses import Field
from typing import Any


def add_option(parser: argparse.ArgumentParser, option: Field) -> None:
    """Adds an option of a configuration: --NAME, or the `flag` of its metadata."""
    kind = option.type.removesuffix(" | None")
    settings: dict[str, Any] = {"help": option.metadata["help"]}
    if "choices" in option.metadata:
        settings["choices"] = option.metadata["choices"]
    elif option.name == "phases":
        settings |= {"type": _phases, "metavar": "FRACTION:LENGTH,..."}
    elif option.name == "data":
        settings |= {"type": str, "nargs": "+", "action": _Tuple, "metavar": "FILE"}
    elif kind == "bool":
        settings["action"] = argparse.BooleanOptionalAction
    else:
        settings |= {"type": _TYPES[kind], "metavar": kind.upper()}
    flag = option.metadata.get("flag", option.name).replace("_", "-")
    parser.add_argument(f"--{flag}", dest=option.name, **settings)


def value_of(option: Field, text: str) -> Any:
    """Returns the value of an option that `text` stands for. Raises ValueError if it stands for none."""
    kind = option.type.removesuffix(" | None")
    if kind == "bool":
        if text not in _BOOLEANS:
            raise ValueError(f"true or false expected, got {text!r}")
        return _BOOLEANS[text]
    if kind not in _TYPES:
        raise ValueError("an option with one value expected")
    return _TYPES[kind](text)


_TYPES = {"int": int, "float": float, "str": str}
_BOOLEANS = {"true": True, "false": False}


class _Tuple(argparse.Action):
    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, tuple(values))


def seed(text: str) -> int:
    """Parses a seed in [0, 2^63)."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 63:
        raise argparse.ArgumentTypeError(f"an integer of at least 0 and below 2^63 expected, got {text!r}")
    return number


def _phases(text: str) -> tuple[tuple[float, int], ...]:
    """Parses "0.9:128,0.1:512", or a length alone: "128"."""
    try:
        if ":" not in text:
            return ((1.0, int(text)),)
        pairs = (part.split(":") for part in text.split(","))
        return tuple((float(fraction), int(length)) for fraction, length in pairs)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"FRACTION:LENGTH,... expected, such as 0.9:128,0.1:512, got {text!r}"
        ) from None
