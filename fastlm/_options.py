"""Options of configurations: dataclass fields with a help text, and checks of their values. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import Field, field, fields, replace
from typing import Any, TypeVar

Config = TypeVar("Config")
INTEGERS_END = 1 << 31  # sizes are below it, so that products of two of them fit into 64 bits


def option(help: str, default: Any, **metadata: Any) -> Any:
    """Makes a dataclass field with a help text for the command line; `choices` lists its possible values."""
    return field(default=default, metadata={"help": help, **metadata})


def options(config: Any) -> list[Field]:
    """Returns the fields that a user may set: those with a help text."""
    return [f for f in fields(config) if "help" in f.metadata]


def require(condition: bool, name: str, expected: str, given: Any) -> None:
    """Raises ValueError, with the option's name and what is expected, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name}: {expected} expected, got {_spelled(given)}")


def _spelled(value: Any) -> str:
    """Spells a value as the command line does: names with commas between them, phases as 0.9:128,0.1:512."""
    if isinstance(value, list):
        return " and ".join(map(str, value)) or "none"
    if isinstance(value, tuple):
        return ",".join(":".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in value)
    return repr(value)


def check_choices(config: Any) -> None:
    """Raises ValueError for a field whose value is not one of its `choices`."""
    for f in fields(config):
        choices = f.metadata.get("choices")
        given = getattr(config, f.name)
        require(choices is None or given in choices, f.name, f"one of {', '.join(choices or ())}", given)


def list_problems(**names: Iterable[str]) -> str:
    """Lists names by the kind of problem, e.g. "missing: a, b; unknown: c". Returns "" without names."""
    found = {kind.replace("_", " "): sorted(few) for kind, few in names.items()}
    return "; ".join(f"{kind}: {', '.join(few)}" for kind, few in found.items() if few)


def option_values(config: Any) -> dict[str, Any]:
    """Returns the options of a configuration by name, for JSON: tuples become lists."""
    return {f.name: _plain(getattr(config, f.name)) for f in options(config)}


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value


def overlay(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns the configuration with `values` (perhaps from JSON) replaced. Raises TypeError for unknown names."""
    return replace(config, **{name: _tupled(value) for name, value in values.items()})
