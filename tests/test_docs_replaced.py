"""docs/replaced.md agrees with the tables in the code, and its examples are the files, which run."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastlm.ops import SPECS
from fastlm.patching import PatchOptions, limits, torch_modules
from fastlm.patching.swap import Swapped
from fastlm.patching.transformers.tables import ARCHITECTURES, architecture

DOCS = Path(__file__).parent.parent / "docs"
FILES = sorted((DOCS / "examples").glob("*.py"))
NEEDS = {"with_trainer": "accelerate", "with_accelerate": "accelerate", "with_lightning": "lightning"}


def load_script():
    spec = importlib.util.spec_from_file_location("docs_replaced", DOCS / "replaced.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


SCRIPT = load_script()
PAGE = SCRIPT.DOCUMENT.read_text(encoding="utf-8")


def test_page_is_fresh():
    """If this fails: `python -P docs/replaced.py` writes the page."""
    assert SCRIPT.document() == PAGE


def test_code_blocks_are_the_files():
    assert re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) == [
        (DOCS / "examples" / f"{stem}.py").read_text(encoding="utf-8") for stem in SCRIPT.TITLES
    ]
    assert {file.stem for file in FILES} == set(SCRIPT.TITLES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_examples_run(file, tmp_path):
    needed = NEEDS.get(file.stem)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-P", str(file)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.split()[-1]) > 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ops_of_a_replacement_are_those_in_its_code(name):
    """An architecture's file and the files that it shares call every op that its table names."""
    for mixin in architecture(name).REPLACEMENTS.values():
        files = {c.__module__ for c in mixin.__mro__ if issubclass(c, Swapped)}
        files |= {"fastlm.patching.transformers.layers", "fastlm.patching.transformers.attention"}
        source = "".join(Path(sys.modules[file].__file__).read_text(encoding="utf-8") for file in files)
        for op in SCRIPT.ops_of(mixin):
            assert op in SPECS and f"ops.{op}(" in source, (mixin, op)


def test_ops_of_torchs_modules_are_those_in_their_namesakes_code():
    for mixin in torch_modules.REPLACEMENTS.values():
        source = Path(sys.modules[mixin.namesake.__module__].__file__).read_text(encoding="utf-8")
        for op in SCRIPT.ops_of(mixin):
            assert f"ops.{op}(" in source, (mixin, op)


def test_limits_name_switches_and_architectures():
    for line in (*limits.LEFT, *limits.CALLS):
        assert line.switch == "any" or isinstance(getattr(PatchOptions(), line.switch), bool)
        assert set(line.architectures) <= set(ARCHITECTURES)
        used = {m.switch for a in line.architectures for m in architecture(a).REPLACEMENTS.values()}
        assert not line.architectures or line.switch in used
