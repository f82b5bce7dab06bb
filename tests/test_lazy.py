"""Importing fastlm, or running its --help, imports no torch; public names are imported when first used."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import fastlm
from fastlm._lazy import attach

ROOT = Path(__file__).parent.parent


def lazy_packages() -> list[str]:
    """Returns the packages whose `__init__.py` calls `attach`."""
    sources = sorted((ROOT / "fastlm").rglob("__init__.py"))
    return [".".join(s.parent.relative_to(ROOT).parts) for s in sources if "= attach(" in s.read_text()]


def imports_for_type_checkers(package: str) -> list[tuple[str, str]]:
    """Returns (module, name) of every import under `if TYPE_CHECKING:` in a package's `__init__.py`."""
    tree = ast.parse(Path(importlib.import_module(package).__file__).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return [(node.module, alias.name) for node in imports for alias in node.names]


def printed_by_a_fresh_process(code: str) -> str:
    return subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    "code",
    [
        "import fastlm",
        "import fastlm; dir(fastlm); fastlm.__version__",
        "import fastlm.train.config",
        "import fastlm.data.shards, fastlm.evaluate.ngrams; fastlm.data.prepare; fastlm.data.train_bpe",
        "from fastlm import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass",
        "from fastlm import cli\ntry: cli.main(['pretrain', '--help'])\nexcept SystemExit: pass",
        "from fastlm import cli\ntry: cli.main(['finetune', '--help'])\nexcept SystemExit: pass",
        "from fastlm import cli\ntry: cli.main(['predict', '--help'])\nexcept SystemExit: pass",
        "import fastlm.recipes.finetune",
    ],
)
def test_no_torch_is_imported(code):
    show = f"{code}\nimport sys; print('imported:', 'fastlm' in sys.modules, 'torch' in sys.modules)"
    assert printed_by_a_fresh_process(show).splitlines()[-1] == "imported: True False"


def test_text_is_read_without_numpy():
    code = "from fastlm.data import novels, read_documents; print(len(next(iter(read_documents(novels())))) > 1000)"
    assert printed_by_a_fresh_process(f"{code}\nimport sys; print('numpy' in sys.modules)").split() == ["True", "False"]


@pytest.mark.parametrize("package", lazy_packages())
def test_what_type_checkers_see_is_what_there_is(package):
    module = importlib.import_module(package)
    imports = imports_for_type_checkers(package)
    members = [(home, name) for home, name in imports if home != package]
    assert sorted(name for _, name in members) == sorted(module.__all__)
    for home, name in members:
        assert getattr(module, name) is getattr(importlib.import_module(home), name), name
    for name in (name for home, name in imports if home == package):
        assert getattr(module, name) is importlib.import_module(f"{package}.{name}"), name
    assert {name for _, name in imports} <= set(dir(module))


def test_submodules_are_attributes_of_a_fresh_import():
    code = "import fastlm; print(fastlm.nn.SelfAttention.__name__, fastlm.ops.__name__, fastlm.models.GPT1.__name__)"
    assert printed_by_a_fresh_process(code).split() == ["SelfAttention", "fastlm.ops", "GPT1"]


def test_dir_lists_public_names_and_submodules_alone():
    code = "import types, fastlm, fastlm.cli; print(*dir(fastlm)); print(*dir(fastlm.data)); print(*(n for n in "
    code += "dir(fastlm) if isinstance(getattr(fastlm, n), types.ModuleType)))"
    of_fastlm, of_data, modules = (line.split() for line in printed_by_a_fresh_process(code).splitlines())
    submodules = {"backends", "data", "models", "nn", "ops", "reference"}
    public = {name for name in of_fastlm if not name.startswith("__")}
    assert {*fastlm.__all__, *submodules, "cli"} <= public
    assert public - {*fastlm.__all__} <= {*modules}
    assert not any(n.startswith("_") and not n.endswith("__") for n in of_fastlm + of_data)
    assert not {"attach", "TYPE_CHECKING"} & {*of_fastlm, *of_data} and "Shards" in of_data


def test_a_star_import_brings_the_public_names():
    code = "from fastlm import *; print(*sorted(n for n in globals() if not n.startswith('_')))"
    assert printed_by_a_fresh_process(code).split() == sorted(fastlm.__all__)


def test_a_name_first_used_under_torch_compile_breaks_no_graph():
    code = """
import torch, fastlm
f = torch.compile(lambda x: fastlm.layer_norm(x, torch.ones(8), None), fullgraph=True, backend="eager")
print(f(torch.tensor([[0.0, 1, 2, 3, 4, 5, 6, 7]])).sum().abs().item() < 1e-5)
"""
    assert printed_by_a_fresh_process(code).split() == ["True"]


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'fastlm' has no attribute 'flash'"):
        _ = fastlm.flash
    with pytest.raises(ImportError, match="cannot import name 'flash' from 'fastlm'"):
        exec("from fastlm import flash")


@pytest.mark.parametrize(
    ("names", "submodules"), [({"generate": ["generate"]}, ()), ({"decode": ["generate"]}, ["generate"])]
)
def test_a_name_that_is_also_a_submodule_is_refused(names, submodules):
    with pytest.raises(ValueError, match="package: 'generate' is a submodule"):
        attach("package", names, submodules)
