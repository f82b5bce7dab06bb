"""Pretrains two small models, fine-tunes them on labelled sets, and writes the table in docs/finetuning.md.

    python docs/finetuning.py train bert --sets SETS --novels novels.txt --reviews reviews.csv --work WORK
    python docs/finetuning.py train gpt1 ...       # beside the first, if there are two cores
    python docs/finetuning.py table --sets SETS --work WORK

SETS holds NAME.train, NAME.dev and NAME.test of each set below, with the suffix of its format. `train` runs commands
of fastlm, each with one thread: it pretrains WORK/MODEL, and from it, and from random weights of the same sizes,
fine-tunes every set with each seed. The dev set selects the epoch; the table has scores on the test set. What is
finished is not run again. The reviews are a CSV with the columns text and source; those of rotten_tomatoes are left
out, because the set rt_sentences is made of them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

MODELS = {"bert": "BERT", "gpt1": "GPT-1"}
SEEDS = (0, 1, 2)
SIZES = "--layers 4 --hidden 128 --heads 2 --intermediate 512 --context 256 --vocab-size 4096"
PRETRAINING = {  # BERT's masked LM predicts few tokens per update, and learns more than their frequencies only in many
    "bert": "--phases 0.9:64,0.1:256 --batch-size 16 --steps 4000 --warmup 100 --learning-rate 1e-3 --dropout 0",
    "gpt1": "--phases 0.9:128,0.1:256 --batch-size 32 --steps 2000 --warmup 100 --dropout 0.1",
}
FINETUNING = {  # with 5e-4, BERT's outputs became the same for all inputs
    "bert": "--max-length 128 --learning-rate 1.5e-4",
    "gpt1": "--max-length 128 --learning-rate 5e-4",
}
STARTS = {"scratch": "--from-scratch", "pretrained": ""}
DOCUMENT = Path(__file__).with_suffix(".md")
MARKS = ("<!-- table -->\n", "<!-- /table -->\n")


class Set(NamedTuple):
    """Holds a set's suffix, its options, the models whose papers have such a task, and the title of its score."""

    suffix: str
    options: str
    score: str
    models: Sequence[str] = tuple(MODELS)


SETS = {
    "rt_sentences": Set("tsv", "--task tsv --text-column sentence --epochs 2", "accuracy"),
    "corr2cause": Set("tsv", "--task tsv --text-column sentence1 --pair-column sentence2 --epochs 2", "accuracy"),
    "lee_similarity": Set(
        "tsv",
        "--task tsv --kind regression --text-column sentence1 --pair-column sentence2 --label-column score --epochs 1",
        "pearson",
    ),
    "socialiqa": Set("jsonl", "--task jsonl --kind choice --epochs 2", "accuracy"),
    "ner_finance": Set("conll", "--task conll --epochs 5", "entity_f1", ("bert",)),
    "population_span": Set("json", "--task squad1 --epochs 2", "squad1_f1", ("bert",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrains and fine-tunes small models, and writes a table of scores.")
    parser.add_argument("command", choices=("train", "table"))
    parser.add_argument("model", choices=tuple(MODELS), nargs="?", help="what to train")
    for name in ("sets", "novels", "reviews", "work"):
        parser.add_argument(f"--{name}", type=Path, required=name in ("sets", "work"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="train: only these (default: 0 1 2)")
    options = parser.parse_args()
    if options.command == "table":
        write_table(options.sets, options.work)
    elif options.model is None or options.novels is None or options.reviews is None:
        parser.error("train: a model, --novels and --reviews expected")
    else:
        pretrain(options.model, options.novels, options.reviews, options.work)
        finetune(options.model, options.sets, options.work, options.seeds)


# Training -----------------------------------------------------------------------------------------------------------


def pretrain(model: str, novels: Path, reviews: Path, work: Path) -> None:
    """Pretrains WORK/MODEL on the novels and the reviews."""
    work.mkdir(parents=True, exist_ok=True)
    texts = work / f"reviews-{model}.jsonl"
    if not texts.exists():
        with reviews.open(encoding="utf-8", newline="") as rows, texts.open("w", encoding="utf-8") as out:
            for row in csv.DictReader(rows):
                if row["source"] != "rotten_tomatoes":
                    out.write(json.dumps({"text": row["text"].replace("<br />", "\n")}) + "\n")
    data = ("--data", str(novels), str(texts))
    options = words(f"--model {model}_small {SIZES} {PRETRAINING[model]}")
    fastlm("pretrain", "--run", str(work / model), *data, *options)


def finetune(model: str, sets: Path, work: Path, seeds: Iterable[int]) -> None:
    """Fine-tunes every set from random and from pretrained weights with each seed, and scores the test sets."""
    for seed in seeds:
        for name, own in SETS.items():
            for start, option in STARTS.items() if model in own.models else ():
                train, dev, test = (str(file_of(sets, name, split)) for split in ("train", "dev", "test"))
                run = run_of(work, name, model, start, seed)
                if not scores_file(run).exists():
                    files = ("--train-file", train, "--dev-file", dev, "--run", str(run), "--seed", str(seed))
                    given = words(f"{FINETUNING[model]} {own.options} {option}")
                    fastlm("finetune", str(work / model), *files, *given)
                    scores_file(run).write_text(fastlm("evaluate", str(run), test, "--json"))


def fastlm(*arguments: str) -> str:
    """Runs a command of fastlm with one thread, and returns its output. Its progress goes to stderr."""
    command = [sys.executable, "-P", "-m", "fastlm.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    print("fastlm " + " ".join(arguments), file=sys.stderr, flush=True)
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def words(options: str) -> list[str]:
    return options.split()


def file_of(sets: Path, name: str, split: str) -> Path:
    return sets / f"{name}.{split}.{SETS[name].suffix}"


def run_of(work: Path, name: str, model: str, start: str, seed: int) -> Path:
    return work / f"{name}-{model}-{start}-{seed}"


def scores_file(run: Path) -> Path:
    return run / "test_scores.json"


# The table ----------------------------------------------------------------------------------------------------------


def write_table(sets: Path, work: Path) -> None:
    """Writes the table between its marks in the document."""
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(MARKS[0])
    table = "".join(f"{line}\n" for line in rows(sets, work))
    DOCUMENT.write_text(before + MARKS[0] + table + MARKS[1] + rest.partition(MARKS[1])[2], encoding="utf-8")
    print(table, end="")


def rows(sets: Path, work: Path) -> Iterable[str]:
    """Yields the table's lines: mean and standard deviation over the seeds, in percent."""
    columns = [(model, start) for model in MODELS for start in STARTS]
    titles = [f"{MODELS[model]}, {start}" for model, start in columns]
    yield "| " + " | ".join(["set", "score", "test examples", "without text", "bag of words", *titles]) + " |"
    yield "|" + "---|" * (5 + len(columns))
    for name, own in SETS.items():
        count, *baselines = baseline_cells(sets, name, own.score)
        cells = [cell(work, name, own, *column) for column in columns]
        yield "| " + " | ".join([f"`{name}`", own.score.replace("_", " "), count, *baselines, *cells]) + " |"


def cell(work: Path, name: str, own: Set, model: str, start: str) -> str:
    if model not in own.models:
        return "-"
    files = [scores_file(run_of(work, name, model, start, seed)) for seed in SEEDS]
    scores = [100 * json.loads(file.read_text())[own.score] for file in files]
    return f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}"


def baseline_cells(sets: Path, name: str, score: str) -> list[str]:
    """Returns the number of test examples, the baseline without the text, and the better one of those with it."""
    from fastlm.data.labelled.labels import label_names
    from fastlm.evaluate.baselines import baseline_scores

    made = format_of(name)
    train, test = (made.read(file_of(sets, name, split)) for split in ("train", "test"))
    labels = made.labels or (label_names(train) if made.kind == "classification" else None)
    without, *with_text = baseline_scores(made.kind, (score,), train, test, labels).values()
    best = max(scores[score] for scores in with_text)
    return [f"{len(test):,}", f"{100 * without[score]:.1f}", f"{100 * best:.1f}"]


def format_of(name: str) -> Any:
    """Returns the format of a set, as its options name it."""
    from fastlm.data.labelled.formats import Columns, find_format

    parser = argparse.ArgumentParser()
    for option in ("task", "kind", "text-column", "pair-column", "label-column"):
        parser.add_argument(f"--{option}")
    given, _ = parser.parse_known_args(words(SETS[name].options))
    fields = {"text": given.text_column, "pair": given.pair_column, "label": given.label_column}
    columns = {field: column for field, column in fields.items() if column is not None}
    return find_format(given.task, columns=Columns(**columns) if columns else None, kind=given.kind)


if __name__ == "__main__":
    main()
