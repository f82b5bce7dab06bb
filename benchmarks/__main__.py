"""The command line. `visit` runs before anything is installed, so each command imports torch only when it needs it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

USAGE = """\
python -m benchmarks [ops|models|feeding|all] [--op NAME] [--model NAME] [--candidate NAME] [--quick]
                            [--no-sweeps] [--compile all|first] [--out DIR] [--plot] [--minutes M]
       python -m benchmarks models --beside NAME [--model NAME] [--threads N ...] [--dropout P ...] [--pairs N]
                            [--out DIR]
       python -m benchmarks finetuning [--model NAME] [--batch N] [--updates N] [--out DIR]
       python -m benchmarks predict [--op NAME] [--shape TEXT] [--backend NAME] [--against REVISION] [--hot N]
                            [--beside RESULTS.json] [--json FILE] [--set NAME=VALUE ...] [--tokens N] [--sweeps]
                            [--minutes M] [-v]
       python -m benchmarks compare BEFORE.json AFTER.json
       python -m benchmarks tables [--write]
       python -m benchmarks visit --out DIR [--minutes M] [--predicted FILE]"""


def main(arguments: list[str]) -> int:
    commands = {"finetuning": _finetuning, "predict": _predict, "compare": _compare, "tables": _tables, "visit": _visit}
    if arguments and arguments[0] in commands:
        return commands[arguments[0]](arguments[1:])
    return _measure(arguments)


def _measure(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        usage=USAGE, description="Times ops, models and feeding beside the machine's limits and other libraries."
    )
    add = parser.add_argument
    choices = ("ops", "models", "feeding", "all")
    add("what", nargs="?", choices=choices, default="all", help="what to time (default: all)")
    add("--op", action="append", metavar="NAME", help="only this op's cases; may be repeated")
    add("--model", action="append", metavar="NAME", help="only this model's cases; may be repeated")
    add("--candidate", action="append", metavar="NAME", help="of models: only this candidate; may be repeated")
    add("--compile", choices=("all", "first"), default="all", help="which cases of an op torch.compile is timed in")
    add("--quick", action="store_true", help="fewer samples, no sweeps; on a CPU also small shapes and one thread")
    add("--no-sweeps", action="store_true", help="only the papers' shapes")
    add("--out", type=Path, help="folder (default: benchmarks/results/<machine>; with --quick: build/benchmarks)")
    add("--plot", action="store_true", help="also draw roofline.png and peers.png beside the results")
    add("--minutes", type=float, help="start no case after this time (default: no limit; --quick on a CPU: 1.6)")
    pairs = parser.add_argument_group(
        "models in pairs, on a CPU", "a step of ours, a step of theirs, in turns, in fp32"
    )
    add = pairs.add_argument
    add("--beside", metavar="NAME", help="whose steps: transformers, or plain (PyTorch's own modules)")
    add("--threads", type=int, nargs="+", default=[1, 2], metavar="N", help="numbers of threads (default: 1 2)")
    add("--dropout", type=float, nargs="+", default=[0.0, 0.1], metavar="P", help="dropouts (default: 0 0.1)")
    add("--pairs", type=int, default=15, metavar="N", help="pairs of steps; the ratios are their medians (default: 15)")
    options = parser.parse_args(arguments)
    if options.beside is not None and options.what != "models":
        parser.error("--beside goes with models: python -m benchmarks models --beside transformers")
    if options.beside is not None:
        from benchmarks import paired as command
    else:
        from benchmarks import session as command

    return command.measure(options)


def _finetuning(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks finetuning", description="Times fine-tuning beside transformers' Trainer, in turns."
    )
    parser.add_argument("--model", action="append", metavar="NAME", help="only this model; may be repeated")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="examples per update (default: 32)")
    parser.add_argument("--updates", type=int, default=50, metavar="N", help="updates per round (default: 50)")
    parser.add_argument("--out", type=Path, help="folder for finetuning.json (default: none is written)")
    from benchmarks.finetuning import measure

    return measure(parser.parse_args(arguments))


def _predict(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks predict",
        description="Predicts times on an H100 from the kernels' machine code. Nothing is measured; no GPU is needed.",
    )
    add = parser.add_argument
    add("--op", action="append", metavar="NAME", help="only this op's cases; may be repeated")
    add("--shape", action="append", metavar="TEXT", help="only shapes that contain this; may be repeated")
    add("--backend", action="append", choices=("cuda", "triton"), help="only this one (default: both)")
    add("--against", metavar="REVISION", help="also predict another revision, and list the changes")
    add("--beside", type=Path, metavar="RESULTS.json", help="also print a table beside these measured times")
    add("--hot", type=int, default=0, metavar="N", help="list the N costliest instructions of each hot loop")
    add("-v", "--verbose", action="store_true", help="list the resources in use and the issue slots lost")
    add("--json", type=Path, metavar="FILE", help="write the predicted times, too")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other constants of the chip: ghz=1.6 xu=0.01")
    add("--tokens", type=int, default=32768, metavar="N", help="per batch (default: 32768, as on a GPU)")
    add("--sweeps", action="store_true", help="also the shapes around the papers'")
    add("--minutes", type=float, help="start no case after this time (default: no limit)")
    options = parser.parse_args(arguments)
    from benchmarks.predict.command import run

    return run(options)


def _compare(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compare", description="Lists the changes that exceed the noise."
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args(arguments)
    from benchmarks.compare import report
    from benchmarks.results import Results, ResultsError

    try:
        print(report(Results.read(options.before), Results.read(options.after)))
    except (OSError, ResultsError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    return 0


def _tables(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks tables", description="Prints the README's tables, made from the committed results."
    )
    parser.add_argument("--write", action="store_true", help="write them into README.md instead")
    options = parser.parse_args(arguments)
    from benchmarks import tables

    return tables.write() if options.write else tables.show()


def _visit(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks visit", description="Builds, tests and measures on a GPU."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for logs, results and summary.md")
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit of the whole visit (default: 8)")
    parser.add_argument(
        "--predicted", type=Path, metavar="FILE", help="of predict --json: shown beside what is measured"
    )
    options = parser.parse_args(arguments)
    from benchmarks.visit import visit

    return visit(options.out, options.minutes, predicted=options.predicted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
