"""Times training steps of fastlm and of another package in turns: ours, theirs, ours, theirs.

Ours is the trainer's update, or with `--candidate patched` a step of transformers' model after `fastlm.patch`.

Other processes slow down two successive steps alike. Therefore the result is the median of the ratios of successive
steps, ours divided by theirs, for the wall clock and for the process's CPU time, which other processes disturb less.
Matrix products take a share of our step that no change of the other code can save; it is printed, too.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import machine
from benchmarks.limits import Limits
from benchmarks.models import Batch, Candidate, ModelCase, ModelCheck, candidates, training_step
from benchmarks.report import aligned
from benchmarks.run import SEED, SETS, Bench, quiet
from benchmarks.timing import FULL, Clock
from fastlm import models
from fastlm.patching.swap import Swapped

MODELS = ("gpt1_small", "bert_small", "gpt1_tiny", "bert_tiny")
TOKENS, TOKENS_OF_TINY = 2048, 512  # tokens per batch
WARM_UP, PROFILED = 2, 3  # steps
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm")
FUSED_ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"  # prefix of the forward's and the backward's name


@dataclass(frozen=True)
class Pairs:
    """Holds the times of one case: medians in milliseconds, and medians of the pairs' ratios (ours / theirs)."""

    model: str
    shape: str
    dropout: float
    threads: int
    ours_ms: float
    theirs_ms: float
    ratio: float
    cpu_ratio: float
    products: float  # the share of matrix products in our step
    candidate: str  # ours
    replaced: int  # the modules that fastlm.patch replaced


def measure(options: argparse.Namespace) -> int:
    """Prints a table and writes it as JSON. Returns the exit status: 0, or 2 for wrong options."""
    unknown = sorted(set(options.model or ()) - set(models.PRESETS))
    if unknown:
        print(f"benchmarks: --model takes {', '.join(models.PRESETS)}, not {', '.join(unknown)}", file=sys.stderr)
        return 2
    cases = list(_cases(options.model or MODELS, options.dropout))
    chosen = options.candidate or ["cpu"]
    for option, given, ours in (("--candidate", " ".join(chosen), True), ("--beside", options.beside, False)):
        names = {c.name for c in candidates(cases[0], on_gpu=False) if c.ours == ours and not c.compiled}
        if given not in names:
            print(f"benchmarks: {option} takes {' or '.join(sorted(names))}, not {given!r}", file=sys.stderr)
            return 2
    found = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for case in cases:
            print(f"{case.op} {case.shape}, dropout {case.dropout}, threads {threads}", file=sys.stderr, flush=True)
            with quiet():
                found.append(_pairs(case, (chosen[0], options.beside), threads, options.pairs))
    about = {"machine": machine.describe(), "versions": machine.versions(), "commit": machine.commit()}
    print(f"{about['machine']['name']}, {about['versions']}, commit {about['commit']['sha'][:10]}, {chosen[0]} beside")
    print(f"{options.beside}; ratios are medians of {options.pairs} pairs of steps")
    print("\n".join(aligned(_table(found))))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "paired.json").write_text(json.dumps(about | {"pairs": [asdict(p) for p in found]}, indent=1))
    return 0


def _cases(names: list[str], dropouts: list[float]) -> Iterator[ModelCase]:
    for name in names:
        length = models.PRESETS[name].context
        tokens = TOKENS_OF_TINY if name.endswith("_tiny") else TOKENS
        for dropout in dropouts:
            yield ModelCase(name, max(1, tokens // length), length, dropout)


def _pairs(case: ModelCase, names: tuple[str, str], threads: int, count: int) -> Pairs:
    bench = Bench(Clock(torch.device("cpu"), FULL), Limits("float32", (), 1.0, 1, None), torch.float32)
    torch.manual_seed(SEED)
    source = models.build(case.config, backend="reference").train()
    generator = torch.Generator().manual_seed(SEED)
    check = ModelCheck(case, source, case.inputs(generator, 2), bench)
    batches = [case.inputs(generator, case.batch) for _ in range(SETS)]
    found = {candidate.name: candidate for candidate in candidates(case, on_gpu=False)}
    steps = [_checked_step(case, found[name], check, bench) for name in names]
    ours_built = found[names[0]].build(case.config, source)
    for step in steps:
        for i in range(WARM_UP):
            step(batches[i % SETS])
    gc.collect()
    gc.disable()
    times = [[_time(step, batches[i % SETS]) for step in steps] for i in range(count)]
    gc.enable()
    (ours, ours_cpu), (theirs, theirs_cpu) = (zip(*of_one, strict=True) for of_one in zip(*times, strict=True))
    return Pairs(
        model=case.name,
        shape=case.shape,
        dropout=case.config.dropout,
        threads=threads,
        ours_ms=round(1e3 * statistics.median(ours), 2),
        theirs_ms=round(1e3 * statistics.median(theirs), 2),
        ratio=round(_median_ratio(ours, theirs), 3),
        cpu_ratio=round(_median_ratio(ours_cpu, theirs_cpu), 3),
        products=round(_products_share(lambda: [steps[0](batches[i % SETS]) for i in range(PROFILED)]), 3),
        candidate=names[0],
        replaced=sum(isinstance(module, Swapped) for module in ours_built.modules()),
    )


def _checked_step(case: ModelCase, candidate: Candidate, check: ModelCheck, bench: Bench) -> Callable[[Batch], None]:
    check(candidate)
    return training_step(case, candidate, check.source, bench)


def _time(step: Callable[[Batch], None], batch: Batch) -> tuple[float, float]:
    """Returns the seconds of one step, by the wall clock and in CPU time of this process."""
    cpu, wall = time.process_time(), time.perf_counter()
    step(batch)
    return time.perf_counter() - wall, time.process_time() - cpu


def _median_ratio(ours: tuple[float, ...], theirs: tuple[float, ...]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _products_share(run: Callable[[], object]) -> float:
    """Returns the share of matrix products in the time of a run; torch's fused attention counts as one."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    events = profiled.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    wanted = [e for e in events if e.key in PRODUCTS or e.key.startswith(FUSED_ATTENTION)]
    return sum(event.self_cpu_time_total for event in wanted) / total


def _table(found: list[Pairs]) -> tuple[list[str], list[list[str]]]:
    head = ["model", "batch", "dropout", "threads", "ours ms", "theirs ms", "ratio", "CPU time", "products", "replaced"]
    rows = [
        [p.model, p.shape, f"{p.dropout:g}", str(p.threads), f"{p.ours_ms:.1f}", f"{p.theirs_ms:.1f}",
         f"{p.ratio:.2f}", f"{p.cpu_ratio:.2f}", f"{p.products:.0%}", str(p.replaced or "")]
        for p in found
    ]  # fmt: skip
    return head, rows
