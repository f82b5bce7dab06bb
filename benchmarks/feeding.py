"""Times how labelled examples become batches, on the CPU: "encode", once per run, and "batch", in every update.

encode: tokenises examples and lays out their sequences. batch: collects 32 of them, packed without padding. Beside each
stand the examples that one H100 could learn from in a second at its peak: 989.4 TFLOP/s in bf16, divided by the FLOPs
of BERT-base's update on sequences of the same mean length. It is computed, not measured, and more than an H100 reaches.

The examples are made up: their words are drawn from 5,000, the n-th with a probability proportional to 1 / n.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.grid import Grid
from benchmarks.machine import PEAK_FLOPS
from benchmarks.results import Record
from benchmarks.run import SEED, Bench
from benchmarks.timing import Clock
from fastlm.data.labelled.batches import LabelledBatches
from fastlm.data.labelled.description import Description
from fastlm.data.labelled.encode import Encodings, encode
from fastlm.data.labelled.examples import Answer, ChoiceExample, Example, Kind, SpanExample, TaggedExample, TextExample
from fastlm.data.tokenizer import Tokenizer, train_bpe, train_wordpiece
from fastlm.models import PRESETS

BATCH = 32
CHOICES = 4


@dataclass(frozen=True)
class FeedingCase:
    kind: Kind
    examples: int
    length: int  # of the longest sequence, in tokens

    @property
    def op(self) -> str:
        return "feeding"

    @property
    def shape(self) -> str:
        return f"{self.kind} {self.length}"


def feeding_cases(grid: Grid) -> list[FeedingCase]:
    count = 256 if grid.small else 2048
    lengths: dict[Kind, int] = {"classification": 128, "choice": 128, "tagging": 128, "span": 384}
    return [FeedingCase(kind, count, length) for kind, length in lengths.items()]


def run_feeding(case: FeedingCase, bench: Bench) -> Iterator[Record]:
    """Yields the records of both passes."""
    texts = Texts(np.random.default_rng(SEED))
    examples = [texts.example(case.kind, number) for number in range(case.examples)]
    task = Description(case.kind, ("0", "1"), max_length=case.length)
    encoded = encode(examples, texts.tokenizer, task, targets=True)
    batches = LabelledBatches(
        encoded,
        BATCH,
        SEED,
        layout="packed",
        train=True,
        rows=case.kind in ("classification", "choice"),
        segments=True,
    )
    clock = Clock(torch.device("cpu"), bench.clock.effort)
    yield _record(
        case,
        "encode",
        encoded,
        len(encoded),
        clock.samples(lambda _: encode(examples, texts.tokenizer, task, targets=True), lambda i: i),
    )
    yield _record(case, "batch", encoded, BATCH, clock.samples(batches.batch, lambda i: i))


def _record(case: FeedingCase, pass_: str, encoded: Encodings, items: int, samples: tuple[float, ...]) -> Record:
    """Returns the record of a pass that handles `items` inputs. An input has as many tokens as the mean one."""
    tokens = round(items * len(encoded.tokens) / len(encoded))
    flops = tokens * PRESETS["bert_base"].flops_per_token(round(float(encoded.lengths.mean())), 0.0)
    examples = items * case.examples / len(encoded)  # a long span example is several inputs
    return Record(
        kind="feeding",
        name=case.op,
        shape=case.shape,
        dtype="int64",
        pass_=pass_,
        candidate="cpu",
        ours=True,
        status="timed",
        samples_us=samples,
        parameters={"examples": examples, "h100_us": round(flops / PEAK_FLOPS["NVIDIA H100 80GB HBM3"] * 1e6, 3)},
        tokens=tokens,
    )


class Texts:
    """Makes examples of random words, and the tokenizer of these words."""

    def __init__(self, generator: np.random.Generator, tokenizer: str = "wordpiece", vocabulary: int = 5000):
        self.generator = generator
        lengths = generator.integers(2, 11, vocabulary)
        self.words = ["".join(generator.choice(list("abcdefghijklmnopqrstuvwxyz"), n)) for n in lengths]
        self.probabilities = 1 / np.arange(1, vocabulary + 1)
        self.probabilities /= self.probabilities.sum()
        train = train_wordpiece if tokenizer == "wordpiece" else train_bpe
        self.tokenizer: Tokenizer = train([self.text(50_000)], 4096)

    def example(self, kind: Kind, number: int) -> Example:
        """Returns one example, of about the size that the papers' sets have."""
        id, where = str(number), f"example {number}"
        if kind == "tagging":
            return TaggedExample(id, tuple(self._draw(20)), ("0", "1") * 10, number, where)
        if kind == "choice":
            choices = tuple(self.text(10) for _ in range(CHOICES))
            return ChoiceExample(id, self.text(20), "", choices, number % CHOICES, where)
        if kind == "span":
            words = self._draw(150)
            start = len(" ".join(words[:70])) + 1
            answer = Answer(" ".join(words[70:73]), start)
            return SpanExample(id, self.text(10), " ".join(words), (answer,), False, where)
        return TextExample(id, self.text(20), self.text(20), str(number % 2), where)

    def _draw(self, count: int) -> list[str]:
        return [self.words[i] for i in self.generator.choice(len(self.words), count, p=self.probabilities)]

    def text(self, count: int) -> str:
        return " ".join(self._draw(count))
