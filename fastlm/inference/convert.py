"""Converts a model between fastlm's files and transformers': `fastlm convert SOURCE TARGET`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastlm.files import new_folder
from fastlm.inference.load import is_ours, load_pretrained, read_task


def convert(source: str | Path, target: str | Path, *, drop: Sequence[str] = ()) -> list[str]:
    """Writes a run's or a model's folder as a folder of transformers', and a folder of transformers' (or a model of its
    hub) as a fastlm model's folder with its tokenizer and, for a fine-tuned model, task.json.

    drop: heads of a fastlm model, or tensors or modules of transformers' (such as "cls.species"), to leave out.

    Returns what was done, as sentences. Raises ValueError, with a sentence, if `target` is there already, for a model
    that transformers has no class for, and as `load_pretrained`.
    """
    target = Path(target)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"target: a new or empty folder expected, got {target}, which holds files")
    return _to_transformers(source, target, drop) if is_ours(source) else _to_fastlm(source, target, drop)


def _to_transformers(source: str | Path, target: Path, drop: Sequence[str]) -> list[str]:
    from fastlm.integrations.transformers import find_class, save_pretrained

    model, tokenizer = load_pretrained(source, drop=drop)
    task = read_task(source)
    task = task if task is not None and task.head in model.head_names else None
    theirs = find_class(model.config, model.heads, task)
    with new_folder(target) as folder:
        save_pretrained(model, folder, tokenizer, task=task)
    lines = [f"{target}: transformers' {theirs.name}, with its tokenizer"]
    lines += [f"left out: the head {name}" for name in drop]
    if hasattr(model, "pooler") and not theirs.pooler:
        lines.append(f"left out: the pooler, which {theirs.name} does not have")
    return lines


def _to_fastlm(source: str | Path, target: Path, drop: Sequence[str]) -> list[str]:
    from fastlm.integrations.transformers import from_pretrained

    loaded = from_pretrained(source, drop=drop)
    with new_folder(target) as folder:
        loaded.model.save(folder)
        if loaded.tokenizer is not None:
            loaded.tokenizer.save(folder / "tokenizer.json")
    heads = ", ".join(loaded.model.head_names) or "no heads"
    lines = [f"{target}: a fastlm {type(loaded.model).__name__} with {heads}"]
    if loaded.tokenizer is None:
        lines.append("no tokenizer: the source has no tokenizer files")
    if loaded.left_out:
        lines.append(f"left out: {', '.join(loaded.left_out)}")
    if loaded.fresh:
        lines.append(f"freshly initialised, as the source has no such tensors: {', '.join(loaded.fresh)}")
    return lines
