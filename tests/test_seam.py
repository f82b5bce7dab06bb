"""Who may know whom: training and the command line name no model, inference imports no train/, recipes no torch."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fastlm"
MODELS = re.compile(r"gpt|bert|electra|ernie|kagnet", re.IGNORECASE)


def names_and_strings(source: str) -> list[str]:
    """Returns the identifiers and strings of a module, without docstrings and comments."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None
    }
    words = []
    for node in ast.walk(tree):
        for field in ("id", "attr", "name", "arg", "module", "asname"):
            words.append(getattr(node, field, None))
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            words.append(node.value)
    return [word for word in words if isinstance(word, str)]


def imported(source: str) -> set[str]:
    tree, modules = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return modules


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (PACKAGE / folder).rglob("*.py"))


@pytest.mark.parametrize("path", [PACKAGE / "cli.py", *sources("commands", "train")], ids=lambda path: path.name)
def test_no_model_is_named(path):
    assert [word for word in names_and_strings(path.read_text()) if MODELS.search(word)] == []


def test_a_name_would_be_seen():
    source = (
        '"""GPT-1 is fine."""\n# BERT too\ndef f():\n    "BERT."\n    return use_bert("GPT1"), x.bert, f"{a} gpt1"\n'
    )
    assert sorted(word for word in names_and_strings(source) if MODELS.search(word)) == [
        " gpt1",
        "GPT1",
        "bert",
        "use_bert",
    ]


@pytest.mark.parametrize("path", sources("inference", "models", "nn", "data", "ops"), ids=lambda path: path.name)
def test_nothing_below_imports_training_or_tasks(path):
    above = [name for name in imported(path.read_text()) if name.startswith(("fastlm.train", "fastlm.tasks"))]
    assert above == []


@pytest.mark.parametrize("path", sources("train"), ids=lambda path: path.name)
def test_training_knows_tasks_by_their_protocol_alone(path):
    allowed = ("fastlm.tasks.base",)
    names = imported(path.read_text())
    assert [n for n in names if n.startswith("fastlm.tasks") and not n.startswith(allowed)] == []
    assert [n for n in names if n.startswith(("fastlm.models", "fastlm.recipes", "fastlm.inference"))] == []


@pytest.mark.parametrize(
    "module",
    ["fastlm.recipes", "fastlm.recipes.finetune", "fastlm.train.config", "fastlm.device", "fastlm.models.configs"],
)
def test_recipes_and_configurations_import_no_torch(module):
    code = f"import sys, {module}; print('torch' in sys.modules, 'numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False False\n"
