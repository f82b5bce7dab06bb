"""Tagging: a tag per word, such as those of named entities (BERT, section 5.3)."""

from __future__ import annotations

from typing import Any

from fastlm.data.labelled.examples import TaggedExample
from fastlm.tasks.labelled import LabelledTask, shorten


class Tagging(LabelledTask):
    """Learns the tag of each word at its first piece. Words that do not fit are scored as "O"."""

    def show(self, example: TaggedExample, prediction: dict[str, Any]) -> tuple[str, bool]:
        words = zip(example.words, prediction["tags"], example.tags, strict=True)
        wrong = [f"{word}: {given}, labelled {right}" for word, given, right in words if given != right]
        return f"{shorten(' '.join(example.words))} ({'; '.join(wrong[:3]) or 'all right'})", not wrong
