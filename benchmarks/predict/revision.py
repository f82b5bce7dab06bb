"""Predicts another revision: its package, kernels and cases, but this folder's model. command.py starts this file.

python -P revision.py OPTIONS-AS-JSON FILE      in the revision's checkout, with it on PYTHONPATH
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent


def use_this_model() -> None:
    """Makes this folder `benchmarks.predict`, whatever the revision has there."""
    import benchmarks

    spec = importlib.util.spec_from_file_location(
        "benchmarks.predict", HERE / "__init__.py", submodule_search_locations=[str(HERE)]
    )
    sys.modules["benchmarks.predict"] = benchmarks.predict = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def main() -> None:
    options, file = argparse.Namespace(**json.loads(sys.argv[1])), Path(sys.argv[2])
    use_this_model()
    from benchmarks import machine
    from benchmarks.predict import command, rows
    from benchmarks.predict.chip import changed

    chip = changed(options.set)
    names = tuple(options.backend or command.BACKENDS)
    found = list(command.predicted_rows(command._cases(options), names, chip))
    rows.write(file, rows.to_json(found, chip, machine.commit()))


if __name__ == "__main__":
    main()
