"""Commands of the command line, one per file. Each imports torch only when it runs."""

from __future__ import annotations

import sys

USAGE_ERROR, INTERRUPTED = 2, 130  # exit codes


def fail(sentence: str, code: int = USAGE_ERROR) -> int:
    """Prints an error as one sentence, and returns the exit code."""
    print(f"fastlm: {sentence}", file=sys.stderr)
    return code
