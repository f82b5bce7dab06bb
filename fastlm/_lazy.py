"""Imports the public names of a package when they are first used, so that importing the package is fast (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any


def attach(
    package: str, names: Mapping[str, Sequence[str]], submodules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns `__getattr__` and `__dir__` for a package whose public names are imported on first use.

    names: {submodule, relative to the package: the names that the package takes from it}. submodules: those that are
    attributes of the package too. The package repeats the names in `if TYPE_CHECKING:` imports and in a literal
    `__all__`, for type checkers and editors; tests/test_lazy.py checks that the three lists are equal.

    Raises ValueError for a name that is also the name of a submodule: importing the submodule would replace it.
    """
    homes = {name: f"{package}.{module}" for module, members in names.items() for name in members}
    for name in homes.keys() & {*submodules, *(module.split(".")[0] for module in names)}:
        raise ValueError(f"{package}: {name!r} is a submodule, so it cannot also be a name imported on first use")

    def __getattr__(name: str) -> Any:
        if name in homes:
            value = getattr(importlib.import_module(homes[name]), name)
        elif name in submodules:
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)  # the next access finds it without this function
        return value

    def __dir__() -> list[str]:
        # Without what the package's own file imports and defines for this function.
        present = vars(sys.modules[package]).items()
        imported = {name for name, value in present if isinstance(value, ModuleType) and not name.startswith("_")}
        special = {name for name, _ in present if name.startswith("__") and name.endswith("__")}
        return sorted({*imported, *special, *homes, *submodules})

    return __getattr__, __dir__
