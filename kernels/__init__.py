"""Triton kernels, one file an op: `fastlm.kernels` once installed.

A well-known package on PyPI is named `kernels`, and libraries import it where they find it. Python started in
the root of a checkout finds this folder under that name, so here it hands over to the package that is meant.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path


def _hand_over() -> None:
    """Put the installed package `kernels`, where there is one, in this module's place."""
    checkout = Path(__file__).parent.parent.resolve()
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != checkout]
    spec = importlib.machinery.PathFinder.find_spec("kernels", elsewhere)
    if spec is not None and spec.loader is not None:
        sys.modules["kernels"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["kernels"])


if __name__ == "kernels":
    _hand_over()
