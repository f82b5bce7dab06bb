"""Converts a model between fastlm's files, transformers' and the original ones: `fastlm convert SOURCE TARGET`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fastlm.data.labelled.description import Description
from fastlm.data.tokenizer import Tokenizer
from fastlm.files import new_folder
from fastlm.inference.load import is_ours, load_pretrained, read_task
from fastlm.models import Model

FORMATS = ("fastlm", "transformers", "openai", "google")


class _Loaded(NamedTuple):
    """Holds what a source has. notes: sentences on what was left out or is fresh."""

    model: Model
    tokenizer: Tokenizer | None
    task: Description | None
    notes: list[str]


def convert(
    source: str | Path,
    target: str | Path,
    *,
    drop: Sequence[str] = (),
    to: str | None = None,
    text_steps: str | None = None,
) -> list[str]:
    """Writes a model and its tokenizer in another format. A fine-tuned model keeps its task.json.

    The source is a run's or a model's folder, a folder of transformers' (or a model of its hub), a folder with OpenAI's
    params_shapes.json, or Google's variables as a .npz with bert_config.json beside it.

    drop: heads of a fastlm model, or tensors or modules of transformers' (such as "cls.species"), to leave out.
    to: one of FORMATS. None means transformers' format for a model of fastlm, and fastlm's for another one.
    text_steps: for OpenAI's files, whose steps the tokenizer takes: "transformers", which None means, or "original".

    Returns what was done, as sentences. Raises ValueError, with a sentence, if `target` is there already, for a model
    that the format cannot hold, and as `load_pretrained`.
    """
    target = Path(target)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"target: a new or empty folder expected, got {target}, which holds files")
    found = find_format(source)
    to = to or ("transformers" if found == "fastlm" else "fastlm")
    if to not in FORMATS or to == found:
        others = ", ".join(name for name in FORMATS if name != found)
        raise ValueError(f"to: one of {others} expected for {source}, which has {found}'s format, got {to!r}")
    if drop and found in ("openai", "google"):
        raise ValueError(f"drop: nothing can be left out of {found}'s format; convert it to fastlm's first")
    if text_steps is not None and (found, to) != ("openai", "fastlm"):
        raise ValueError(f"text_steps: they are for OpenAI's files as fastlm's, got {found}'s as {to}'s")
    loaded = _READERS[found](source, drop)
    if text_steps is not None:
        loaded = loaded._replace(tokenizer=_original_tokenizer(source, text_steps))
    with new_folder(target) as folder:
        lines = _WRITERS[to](loaded, folder)
    return [f"{target}: {lines[0]}", *lines[1:], *loaded.notes]


def find_format(source: str | Path) -> str:
    """Returns the format of a source, one of FORMATS: by the files that only it has; else transformers'."""
    from fastlm.integrations.originals import bert, gpt1

    if (Path(source) / gpt1.SHAPES).is_file():
        return "openai"
    if bert.find_google(source) is not None:
        return "google"
    return "fastlm" if is_ours(source) else "transformers"


def _read_fastlm(source: str | Path, drop: Sequence[str]) -> _Loaded:
    model, tokenizer = load_pretrained(source, drop=drop)
    task = read_task(source)
    task = task if task is not None and task.head in model.head_names else None
    return _Loaded(model, tokenizer, task, [f"left out: the head {name}" for name in drop])


def _read_transformers(source: str | Path, drop: Sequence[str]) -> _Loaded:
    from fastlm.integrations.transformers import from_pretrained

    loaded, notes = from_pretrained(source, drop=drop), []
    if loaded.left_out:
        notes.append(f"left out: {', '.join(loaded.left_out)}")
    if loaded.fresh:
        notes.append(f"freshly initialised, as the source has no such tensors: {', '.join(loaded.fresh)}")
    return _Loaded(loaded.model, loaded.tokenizer, loaded.task, notes)


def _read_openai(source: str | Path, drop: Sequence[str]) -> _Loaded:
    from fastlm.integrations import originals

    return _Loaded(originals.read_openai(source), originals.read_openai_tokenizer(source), None, [])


def _original_tokenizer(source: str | Path, text_steps: str) -> Tokenizer | None:
    from fastlm.integrations import originals

    return originals.read_openai_tokenizer(source, text_steps)


def _read_google(source: str | Path, drop: Sequence[str]) -> _Loaded:
    from fastlm.integrations import originals

    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    model, skipped = originals.read_google(source), originals.bert.left_out(source)
    notes = (
        [f"left out: {len(skipped)} variables of the optimizer (*/adam_m, */adam_v, global_step)"] if skipped else []
    )
    return _Loaded(model, originals.read_google_tokenizer(folder), None, notes)


def _write_fastlm(loaded: _Loaded, folder: Path) -> list[str]:
    loaded.model.save(folder)
    if loaded.tokenizer is not None:
        loaded.tokenizer.save(folder / "tokenizer.json")
    heads = ", ".join(loaded.model.head_names) or "no heads"
    return [f"a fastlm {type(loaded.model).__name__} with {heads}", *_lacks_tokenizer(loaded)]


def _write_transformers(loaded: _Loaded, folder: Path) -> list[str]:
    from fastlm.integrations.transformers import find_class, save_pretrained

    model = loaded.model
    theirs = find_class(model.config, model.heads, loaded.task)
    save_pretrained(model, folder, loaded.tokenizer, task=loaded.task)
    lines = [f"transformers' {theirs.name}" + (", with its tokenizer" if loaded.tokenizer else "")]
    if hasattr(model, "pooler") and not theirs.pooler:
        lines.append(f"left out: the pooler, which {theirs.name} does not have")
    if loaded.tokenizer is not None and loaded.tokenizer.text_steps == "original":
        lines.append(
            "not there: the text steps of OpenAI's code; give that tokenizer the words of original_text.words_of"
        )
    return [*lines, *_lacks_tokenizer(loaded)]


def _write_openai(loaded: _Loaded, folder: Path) -> list[str]:
    from fastlm.integrations import originals

    originals.write_openai(loaded.model, folder)
    if loaded.tokenizer is not None:
        originals.write_openai_tokenizer(loaded.tokenizer, folder)
    return ["OpenAI's parameters; they do not hold the dropout rates", *_lacks_tokenizer(loaded)]


def _write_google(loaded: _Loaded, folder: Path) -> list[str]:
    from fastlm.integrations import originals

    originals.write_google(loaded.model, folder)
    if loaded.tokenizer is not None:
        originals.write_google_tokenizer(loaded.tokenizer, folder)
    return ["Google's variables as a .npz", *_lacks_tokenizer(loaded)]


def _lacks_tokenizer(loaded: _Loaded) -> list[str]:
    return [] if loaded.tokenizer is not None else ["no tokenizer: the source has no tokenizer files"]


_READERS: dict[str, Callable[[str | Path, Sequence[str]], _Loaded]] = {
    "fastlm": _read_fastlm,
    "transformers": _read_transformers,
    "openai": _read_openai,
    "google": _read_google,
}
_WRITERS: dict[str, Callable[[_Loaded, Path], list[str]]] = {
    "fastlm": _write_fastlm,
    "transformers": _write_transformers,
    "openai": _write_openai,
    "google": _write_google,
}
