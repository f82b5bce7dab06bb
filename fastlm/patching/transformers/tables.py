"""The table of all replacements for transformers' modules.

A file of this package is imported only if the file of transformers that it belongs to has been: a model whose file is
not imported cannot be in a tree.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

_MODELS = "transformers.models"

# Our file: the package in transformers.models, whose modeling file has the same name.
ARCHITECTURES = {
    "albert": "albert",
    "bert": "bert",
    "distilbert": "distilbert",
    "electra": "electra",
    "gpt2": "gpt2",
    "openai_gpt": "openai",
    "roberta": "roberta",
}


def architecture(name: str) -> ModuleType:
    """Imports the file of an architecture, and with it transformers' file."""
    return importlib.import_module(f"fastlm.patching.transformers.{name}")


def replacements() -> dict[type, type]:
    """Returns the replacements of all architectures whose models can exist in this process."""
    loaded = (ours for ours, theirs in ARCHITECTURES.items() if f"{_MODELS}.{theirs}.modeling_{theirs}" in sys.modules)
    return {c: mixin for name in loaded for c, mixin in architecture(name).REPLACEMENTS.items()}


def implementation() -> ModuleType | None:
    """Returns the file that switches a model's attention implementation, or None if no model can exist."""
    if "transformers.modeling_utils" not in sys.modules:
        return None
    return importlib.import_module("fastlm.patching.transformers.implementation")
