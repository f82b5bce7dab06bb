"""Commands of the command line, one per file. Each imports torch only when it runs."""

from __future__ import annotations

import contextlib
import functools
import re
import sys

USAGE_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141  # exit codes, the last two as the shell reports SIGINT and SIGPIPE


def import_torch() -> None:
    """Imports torch after numpy. While torch imports numpy itself, it swallows an interrupt, and then lacks numpy."""
    with contextlib.suppress(ModuleNotFoundError):
        import numpy  # noqa: F401
    import torch  # noqa: F401


def fail(sentence: str, code: int = USAGE_ERROR) -> int:
    """Prints an error as one sentence, and returns the exit code."""
    say(sentence)
    return code


def say(sentence: str) -> None:
    """Prints a sentence to stderr, with the options that it names spelled as on the command line."""
    flags = _flags()
    names = "|".join(sorted(flags, key=len, reverse=True))
    # Names are options where they are not a part of a path or in quotes.
    option = re.compile(rf"(?<![\w./'\"-])(?:{names})(?![\w/'\"-]|\.\w)")
    sentence = option.sub(lambda name: flags[name[0]], sentence)
    print(f"fastlm: {re.sub('^format: ', '--task: ', sentence)}", file=sys.stderr)


@functools.cache
def _flags() -> dict[str, str]:
    """Returns the flags of the options whose names are no English words."""
    from fastlm import recipes
    from fastlm.recipes import finetune

    options = [*recipes.OPTIONS, *finetune.OPTIONS]
    names = {f.name: f.metadata.get("flag", f.name) for f in options if "_" in f.name}
    names |= {name: name for name in ("top_k", "top_p")}
    return {name: f"--{flag.replace('_', '-')}" for name, flag in names.items()}
