"""The text steps of OpenAI's GPT-1 code before byte-pair encoding (its fine-tuning code; the paper's section 4.1).

They repair the text (ftfy), write rare dashes, ellipses and accents in ASCII, put spaces around runs of punctuation,
and split words by spaCy's rules for English, which need no model. Words are lower-case. A line break, with the white
space around it, is a word of its own.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

# What a tokenizer.json holds if its text takes these steps first: they make words with single spaces between them.
NORMALIZER: dict[str, Any] = {"type": "Lowercase"}
PRE_TOKENIZER: dict[str, Any] = {
    "type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False,
}  # fmt: skip

_ASCII = str.maketrans({"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"})
_RUN = re.compile(r"""([-~!";?+,)(\\/*\[\]}{|_])\1*""")  # of one character
_LINE_BREAK, _BLANKS = re.compile(r"\s*\n\s*"), re.compile(r"[^\S\n]+")


def words_of(text: str) -> str:
    """Returns a text's words with single spaces between them.

    Raises ModuleNotFoundError, with the command that installs it, if ftfy or spaCy is missing.
    """
    repair, split = _libraries()
    words = ("\n" if "\n" in word else word for word in split(standardize(repair(text))))
    return " ".join(words).lower()


def standardize(text: str) -> str:
    """Returns a text with ASCII dashes, spaces around runs of punctuation, and single spaces and line breaks."""
    text = _RUN.sub(lambda run: f" {run[0]} ", text.translate(_ASCII))
    return _BLANKS.sub(" ", _LINE_BREAK.sub(" \n ", text)).strip()


@functools.cache
def _libraries() -> tuple[Callable[[str], str], Callable[[str], list[str]]]:
    """Returns ftfy's repair of a text, and spaCy's split of a text into words."""
    try:
        import ftfy
        from spacy.lang.en import English
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed, and OpenAI's text steps need it: pip install 'fastlm[original]'",
            name=error.name,
        ) from None
    split = English().tokenizer
    return ftfy.fix_text, lambda text: [token.text for token in split(text)]
