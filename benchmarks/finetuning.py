"""Times fine-tuning by fastlm and by transformers' Trainer in turns: a classifier of pairs of texts, of equal weights.

Both train as they come: fastlm packs a batch without padding, the Trainer pads it to its longest input. Dropout, batch
size, precision (bf16 on a GPU, fp32 on a CPU), AdamW and clipping are the same. A round is a block of updates by each;
the ratio is the median over rounds of the seconds per update, ours divided by theirs. Before anything is timed, both
models must give the same loss without dropout. The texts are made up (feeding.py), of 10 to 40 words each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from benchmarks.case import Unavailable, package
from benchmarks.feeding import Texts
from benchmarks.report import aligned
from benchmarks.run import SEED
from fastlm import models
from fastlm.data.labelled.config import LabelledConfig
from fastlm.data.labelled.encode import Encodings
from fastlm.integrations.transformers import save_pretrained
from fastlm.recipes.finetune import for_model
from fastlm.tasks.labelled import LabelledTask
from fastlm.train.config import TrainConfig
from fastlm.train.trainer import Plan, Trainer

MODELS = ("bert_base", "gpt1")
ROUNDS, WARM_UP = 3, 3
LOSS_TOLERANCE = 1e-4  # in fp32, relative


@dataclass(frozen=True)
class Pair:
    """Holds the result of one model: medians over the rounds."""

    model: str
    batch: int
    mean_length: float  # tokens per example
    ours: float  # examples per second
    theirs: float
    ratio: float  # seconds per update, ours / theirs


def measure(options: argparse.Namespace) -> int:
    """Prints each model's row and writes all so far as JSON. Returns the exit status: 0, or 2 for wrong options."""
    unknown = sorted(set(options.model or ()) - set(models.PRESETS))
    if unknown:
        print(f"benchmarks: --model takes {', '.join(models.PRESETS)}, not {', '.join(unknown)}", file=sys.stderr)
        return 2
    try:
        package("accelerate")
    except Unavailable as reason:
        print(f"benchmarks: accelerate, which transformers' Trainer needs, {reason}", file=sys.stderr)
        return 2
    found: list[Pair] = []
    about = {"machine": machine.describe(), "versions": machine.versions(), "commit": machine.commit()}
    print(f"{about['machine']['name']}, {about['versions']}, commit {about['commit']['sha'][:10]}")
    print(f"ours beside transformers' Trainer; {ROUNDS} rounds of {options.updates} updates each", flush=True)
    for name in options.model or MODELS:
        with tempfile.TemporaryDirectory(prefix="fastlm-finetuning-") as scratch:
            print(f"finetuning {name}", file=sys.stderr, flush=True)
            found.append(_measure(name, options.batch, options.updates, Path(scratch)))
        print("\n".join(aligned(_table(found[-1:]))), flush=True)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            pairs = [asdict(pair) for pair in found]
            (options.out / "finetuning.json").write_text(json.dumps(about | {"pairs": pairs}, indent=1))
    return 0


def _measure(name: str, batch: int, updates: int, scratch: Path) -> Pair:
    task = _task(name, batch, scratch)
    with _trainer(task, batch, scratch) as trainer:
        save_pretrained(trainer.model, scratch / "theirs", task.tokenizer, task=task.description)
        check_losses(task, trainer, scratch / "theirs")
        rounds = []
        for number in range(ROUNDS):
            ours = _time(trainer.update, number * (WARM_UP + updates), updates)
            rounds.append((ours, _time_theirs(task, scratch / "theirs", trainer.config, updates)))
    ours, theirs = zip(*rounds, strict=True)
    return Pair(
        model=name,
        batch=batch,
        mean_length=round(float(task.encoded.lengths.mean()), 1),
        ours=round(batch / statistics.median(ours), 1),
        theirs=round(batch / statistics.median(theirs), 1),
        ratio=round(statistics.median(a / b for a, b in rounds), 3),
    )


def _task(name: str, batch: int, scratch: Path) -> LabelledTask:
    """Writes a model with random weights and made-up pairs, and returns the prepared task."""
    texts = Texts(np.random.default_rng(SEED), "wordpiece" if name.startswith("bert") else "bpe")
    words = texts.generator.integers(10, 41, size=(64 * batch, 2))
    lines = [f"{texts.text(a)}\t{texts.text(b)}\t{number % 2}" for number, (a, b) in enumerate(words)]
    (scratch / "train.tsv").write_text("\n".join(["text\tpair\tlabel", *lines]) + "\n")
    (scratch / "dev.tsv").write_text("\n".join(["text\tpair\tlabel", *lines[:2]]) + "\n")
    torch.manual_seed(SEED)
    models.build(models.PRESETS[name]).save(scratch / "start")
    texts.tokenizer.save(scratch / "start" / "tokenizer.json")
    labelled = LabelledConfig(
        format="tsv",
        train_file=str(scratch / "train.tsv"),
        dev_file=str(scratch / "dev.tsv"),
        pair_column="pair",
        max_length=min(128, models.PRESETS[name].context),
        lm_weight=0.0,
        head_bias=name.startswith("bert"),  # transformers' head of GPT-1 has none
    )
    task = replace(for_model(str(scratch / "start"), "tsv"), labelled=labelled).task()
    task.prepare(scratch / "run", lambda sentence: None)
    return task


def _trainer(task: LabelledTask, batch: int, scratch: Path) -> Trainer:
    on_gpu = torch.cuda.is_available()
    config = for_model(str(scratch / "start"), "tsv").train
    config = replace(config, batch_size=batch, phases=((1.0, task.labelled.max_length),))
    plan = Plan(1 << 30, 0, "cuda" if on_gpu else "cpu", "bf16" if on_gpu else "fp32", task.identity())
    return Trainer(task, config, plan)


def check_losses(task: LabelledTask, trainer: Trainer, folder: Path) -> None:
    """Raises ValueError if transformers' model has another loss on the dev set, without dropout and in fp32."""
    theirs = _load(folder).to(trainer.device).eval()
    trainer.model.eval()
    with torch.no_grad():
        batch = next(iter(trainer.validation_batches()))
        inputs = {name: values.to(trainer.device) for name, values in batch.items() if name != "items"}
        got = task.losses(trainer.model, inputs)[0].item()
        expected = theirs(**_collator(folder)(_rows(task, task.encoded_validation)).to(trainer.device)).loss.item()
    if not abs(got - expected) <= LOSS_TOLERANCE * abs(expected):
        raise ValueError(f"the loss of fastlm's model is {got:.6f}, that of transformers' {expected:.6f}")


def _time(update: Callable[[int], Any], first: int, updates: int) -> float:
    """Returns the seconds per update, after updates that are not counted."""
    for step in range(first, first + WARM_UP + updates):
        if step == first + WARM_UP:
            started = _now()
        update(step)
    return (_now() - started) / updates


def _time_theirs(task: LabelledTask, folder: Path, config: TrainConfig, updates: int) -> float:
    """Returns the seconds per update of transformers' Trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    times: dict[int, float] = {}

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step in (WARM_UP, WARM_UP + updates):
                times[state.global_step] = _now()

    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder.parent / "trainer"),
        max_steps=WARM_UP + updates,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rest = {"train_dataset": _rows(task, task.encoded), "data_collator": _collator(folder), "callbacks": [Clock()]}
    Trainer(_load(folder), arguments, **rest).train()
    return (times[WARM_UP + updates] - times[WARM_UP]) / updates


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _load(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder)


def _collator(folder: Path) -> Callable[[list[dict[str, Any]]], Any]:
    """Returns transformers' collator, which pads to the longest input of a batch."""
    from transformers import AutoTokenizer, DataCollatorWithPadding

    return DataCollatorWithPadding(AutoTokenizer.from_pretrained(folder))


def _rows(task: LabelledTask, encoded: Encodings) -> list[dict[str, Any]]:
    """Returns the inputs as transformers' collator takes them. Its GPT-1 would embed segments as tokens."""
    rows = []
    for number, (start, end) in enumerate(itertools.pairwise(encoded.starts)):
        row = {"input_ids": encoded.tokens[start:end].tolist(), "labels": int(encoded.targets["labels"][number])}
        if not task.template.causal:
            row["token_type_ids"] = [int(position >= encoded.second[number]) for position in range(end - start)]
        rows.append(row)
    return rows


def _table(found: list[Pair]) -> tuple[list[str], list[list[str]]]:
    head = ["model", "batch", "tokens per example", "ours, examples/s", "theirs, examples/s", "ratio of times"]
    rows = [
        [p.model, str(p.batch), f"{p.mean_length:.0f}", f"{p.ours:,.0f}", f"{p.theirs:,.0f}", f"{p.ratio:.2f}"]
        for p in found
    ]
    return head, rows
