"""The README's examples run, and its table of backends agrees with the SPECs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastlm.ops import SPECS

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda code: code.splitlines()[-1][:30])
def test_examples_run(example):
    exec(compile(example, "README.md", "exec"), {})


def test_table_of_backends():
    """If this fails: `python tests/test_readme.py` writes the table."""
    assert _table_in_readme() == table()


def table() -> str:
    rows = [
        "| op | reference | CPU | Triton | CUDA C++ |",
        "|---|---|---|---|---|",
    ]
    for op, spec in SPECS.items():
        cells = (
            _cell(spec.limits[backend].dtypes if backend in spec.limits else ())
            for backend in ("reference", "cpu", "triton", "cuda")
        )
        rows.append(f"| `{op}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(dtypes) -> str:
    names = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    return ", ".join(names[s] for d in dtypes if (s := str(d).removeprefix("torch.")) in names) or "not yet"


def _table_in_readme() -> str:
    return re.search(r"<!-- backends -->\n(.*?)\n?<!-- /backends -->", README, re.DOTALL)[1]


if __name__ == "__main__":
    old = f"<!-- backends -->\n{_table_in_readme()}\n<!-- /backends -->".replace("\n\n", "\n")
    new = README.replace(old, f"<!-- backends -->\n{table()}\n<!-- /backends -->")
    (Path(__file__).parent.parent / "README.md").write_text(new)
