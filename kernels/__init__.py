"""Triton kernels, one file per op. The installed package is `fastlm.kernels`.

PyPI has a well-known package `kernels`, which other libraries import if it is installed. If Python starts in the root
of a checkout, `import kernels` finds this folder instead. This file then loads the PyPI package in its place.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path


def _load_installed_package() -> None:
    """Replaces this module in sys.modules by the installed package `kernels`, if there is one."""
    checkout = Path(__file__).parent.parent.resolve()
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != checkout]
    spec = importlib.machinery.PathFinder.find_spec("kernels", elsewhere)
    if spec is not None and spec.loader is not None:
        sys.modules["kernels"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["kernels"])


if __name__ == "kernels":
    _load_installed_package()
