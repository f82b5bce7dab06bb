"""Writes docs/replaced.md from the tables in fastlm/patching and fastlm/nn, and the files in docs/examples.

python -P docs/replaced.py
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path

from torch import nn

from fastlm.nn.arguments import ARGUMENTS
from fastlm.ops import SPECS
from fastlm.patching import limits, torch_modules
from fastlm.patching.swap import Swapped
from fastlm.patching.transformers import albert, distilbert, gpt2, layers, losses, openai_gpt, roberta
from fastlm.patching.transformers.attention import SelfAttention
from fastlm.patching.transformers.tables import ARCHITECTURES, architecture

DOCUMENT = Path(__file__).with_suffix(".md")
EXAMPLES = Path(__file__).parent / "examples"
TITLES = {
    "with_trainer": "transformers with Trainer",
    "with_pytorch": "Plain PyTorch",
    "with_lightning": "Lightning",
    "with_accelerate": "accelerate",
}
OPS: dict[type[Swapped], tuple[str, ...]] = {
    torch_modules.LayerNorm: ("layer_norm",),
    torch_modules.GELU: ("bias_gelu",),
    torch_modules.CrossEntropyLoss: ("cross_entropy",),
    torch_modules.MultiheadAttention: ("attention_packed",),
    torch_modules.TransformerEncoderLayer: ("add_layer_norm", "bias_gelu"),
    torch_modules.TransformerEncoder: (),  # its layers call the ops
    albert.Attention: ("attention", "add_layer_norm"),
    albert.Layer: ("bias_gelu", "add_layer_norm"),
    distilbert.FeedForward: ("bias_gelu",),
    distilbert.Block: ("add_layer_norm",),
    gpt2.Block: ("layer_norm", "add_layer_norm"),
    openai_gpt.Attention: ("attention_packed",),
    openai_gpt.Block: ("add_layer_norm",),
    roberta.LMHead: ("gelu_layer_norm",),
    layers.AddNorm: ("add_layer_norm",),
    layers.Intermediate: ("bias_gelu",),
    layers.MLP: ("bias_gelu",),
    layers.Transform: ("gelu_layer_norm",),
    layers.Embeddings: ("embedding_layer_norm",),
    losses.VocabularyLoss: ("linear_cross_entropy",),
    SelfAttention: ("attention",),
}


def document() -> str:
    """Returns the whole page."""
    return "\n".join(lines()) + "\n"


def lines() -> Iterator[str]:
    yield "# What is replaced and what is not"
    yield "\n`python -P docs/replaced.py` writes this page from the tables in the code.\n"
    yield "`fastlm.patch` replaces these modules. `print(fastlm.patch(model))` says it of a model at hand.\n"
    yield "## torch.nn's modules in any model\n"
    yield from replaced(torch_modules.REPLACEMENTS)
    yield "\nThey compute as their namesakes in `fastlm.nn`, whose arguments are listed below."
    yield "A TransformerEncoder calls no op itself: it gives its layers the rows of a padding mask."
    yield "A patched MultiheadAttention keeps torch's default need_weights=True, with which torch's own way computes.\n"
    for name in ARCHITECTURES:
        yield from architecture_section(name)
    yield "\n## Modules that are left\n"
    yield "The report names each such module and its reason.\n"
    values = {"max_head_dim": torch_modules.MAX_HEAD_DIM}
    yield from table(
        "switch | left if | reason", ((x.switch, x.what.format(**values), x.then.format(**values)) for x in limits.LEFT)
    )
    yield "\n## Dtypes and devices\n"
    yield '`backend="auto"` takes the first backend that serves the call: CUDA C++ or Triton on a GPU, the faster path'
    yield "for CPUs on a CPU, and the reference, which is plain PyTorch, for the rest (such as float64 on a GPU).\n"
    yield from table("op | reference | CPU | Triton | CUDA C++", (dtypes(op) for op in SPECS if op in used_ops()))
    yield "\n## fastlm.nn"
    for name, namesake in ARGUMENTS.items():
        yield f"\n### {name}\n"
        groups = (("constructor", namesake.constructor), ("call", namesake.call))
        rows = ((where, f"`{a.name}`", a.values, a.served, a.note) for where, group in groups for a in group)
        yield from table("of | argument | values | served by | note", rows)
    yield "\n## Examples"
    for stem, title in TITLES.items():
        yield f"\n### {title}\n\n`docs/examples/{stem}.py`:\n\n```python"
        yield (EXAMPLES / f"{stem}.py").read_text(encoding="utf-8") + "```"


def architecture_section(name: str) -> Iterator[str]:
    """Yields what is replaced, what is left, and which calls take another way."""
    ours = architecture(name)
    yield f"\n## {name}: `patching.apply_fastlm_to_{name}()`\n"
    yield from replaced(ours.REPLACEMENTS)
    theirs = import_module(f"transformers.models.{ARCHITECTURES[name]}.modeling_{ARCHITECTURES[name]}")
    yield "\nThese modules stay as they are, because no op stands for them; modules inside them that are in a table"
    yield "above, such as torch.nn's LayerNorm, are replaced:"
    yield ", ".join(f"`{c.__name__}`" for c in others(theirs, ours.REPLACEMENTS)) + ".\n"
    yield f"Padding: {limits.PADDING}. Other calls of replaced modules:\n"
    calls = (x for x in limits.CALLS if not x.architectures or name in x.architectures)
    yield from table("switch | call | computed by", ((f"`{x.switch}`", x.what, x.then) for x in calls))


def replaced(replacements: dict[type, type[Swapped]]) -> Iterator[str]:
    rows = (
        (f"`{c.__name__}`", f"`{m.switch}`", ", ".join(f"`{op}`" for op in ops_of(m))) for c, m in replacements.items()
    )
    return table("module | switch | ops", rows)


def ops_of(mixin: type[Swapped]) -> tuple[str, ...]:
    """Returns the ops of a replacement: its own line of OPS, or that of a base. Raises KeyError if it has none."""
    return OPS[next((c for c in mixin.__mro__ if c in OPS), mixin)]


def used_ops() -> set[str]:
    return {op for ops in OPS.values() for op in ops}


def others(file: object, replacements: dict[type, type[Swapped]]) -> list[type]:
    """Returns the module classes that a file of transformers defines, without those that are replaced."""
    classes = (c for c in vars(file).values() if inspect.isclass(c) and issubclass(c, nn.Module))
    return [c for c in classes if c.__module__ == file.__name__ and c not in replacements]


def dtypes(op: str) -> tuple[str, ...]:
    limits_of = SPECS[op].limits
    names = ([str(d).removeprefix("torch.") for d in limits_of[b].dtypes] if b in limits_of else [] for b in BACKENDS)
    return f"`{op}`", *(", ".join(found) or "none" for found in names)


BACKENDS = ("reference", "cpu", "triton", "cuda")


def table(header: str, rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {header} |"
    yield "|" + "---|" * (header.count("|") + 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
