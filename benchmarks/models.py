"""Compares one training step (forward, backward, clipping, optimizer) of fastlm's GPT-1 and BERT with other packages'.

fastlm's step is the trainer's `update`, which also loads its batch. The step of the other packages is written here, and
so is that of "patched": transformers' model after `fastlm.patch`.

Before a candidate is timed, its loss and every gradient are compared with those of fastlm's reference backend in
float32, on two sequences with the same weights. Those of fastlm's models are compared with dropout, because the masks
are the same, the others without.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastlm
from benchmarks import machine
from benchmarks.case import Unavailable, package
from benchmarks.check import Refused
from benchmarks.grid import Grid
from benchmarks.plain import plain
from benchmarks.results import Record
from benchmarks.run import SEED, SETS, Bench, explain, quiet
from fastlm import models
from fastlm.integrations import transformers as hf
from fastlm.models import BERTConfig, GPT1Config
from fastlm.tasks.base import Notify, Task
from fastlm.train.config import TrainConfig
from fastlm.train.trainer import Plan, Trainer

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]

# The largest relative difference of the loss, and of all gradients as one vector. In bf16, with its 8 significant bits,
# gradients differ by some per cent after 24 layers. Without one layer norm or bias they would differ by much more.
TOLERANCES = {torch.float32: (1e-5, 1e-3), torch.bfloat16: (5e-3, 0.1)}


@dataclass(frozen=True)
class ModelCase:
    name: str
    batch: int
    length: int
    dropout: float | None = None  # None: the preset's

    @property
    def op(self) -> str:
        return f"model {self.name}"

    @property
    def shape(self) -> str:
        return f"{self.batch} x {self.length}"

    @property
    def config(self) -> GPT1Config | BERTConfig:
        preset = models.PRESETS[self.name]
        return preset if self.dropout is None else _with_dropout(preset, self.dropout)

    @property
    def is_bert(self) -> bool:
        return isinstance(self.config, BERTConfig)

    @property
    def predicted(self) -> int:
        """Returns the number of positions per sequence that the masked LM predicts."""
        return round(0.15 * self.length)

    def flops(self) -> int:
        """Returns the FLOPs of a step by the models' formulas, the same for every candidate."""
        fraction = (self.predicted / self.length,) if self.is_bert else ()
        return self.batch * self.length * self.config.flops_per_token(self.length, *fraction)

    def inputs(self, generator: torch.Generator, batch: int) -> Batch:
        def draw(high: int, *shape: int) -> Tensor:
            return torch.randint(high, (batch, *shape), generator=generator, device=generator.device)

        tokens = draw(self.config.vocab_size, self.length)
        if not self.is_bert:
            return {"tokens": tokens, "targets": nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)}
        order = torch.rand(tokens.shape, generator=generator, device=generator.device).argsort(1)
        return {
            "tokens": tokens,
            "segments": (torch.arange(self.length, device=tokens.device) >= self.length // 2).long().expand(batch, -1),
            "mlm_positions": order[:, : self.predicted],
            "mlm_targets": draw(self.config.vocab_size, self.predicted),
            "labels": draw(2),
        }


def model_cases(grid: Grid, names: list[str] | None) -> list[ModelCase]:
    """Returns the cases of the named models, or of all. Raises ValueError for an unknown name."""
    if grid.tokens == 32768:
        sizes = [("gpt1", 512), ("bert_base", 128), ("bert_base", 512), ("bert_large", 128), ("bert_large", 512)]
        found = [ModelCase(name, grid.tokens // length, length) for name, length in sizes]
    else:
        names_here = [f"{kind}_{'tiny' if grid.small else 'small'}" for kind in ("gpt1", "bert")]
        lengths = {name: models.PRESETS[name].context for name in names_here}
        found = [ModelCase(name, grid.tokens // length, length) for name, length in lengths.items()]
    unknown = sorted(set(names or []) - {case.name for case in found})
    if unknown:
        known = ", ".join(dict.fromkeys(case.name for case in found))
        raise ValueError(f"there are no cases of {', '.join(unknown)}: --model takes {known} here")
    return [case for case in found if not names or case.name in names]


# Candidates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """Holds an implementation of the models.

    `build` makes the model of a configuration, with the weights of fastlm's model. `gradients` returns its gradients by
    the names of fastlm's parameters. With `by_trainer` the model is fastlm's, which takes dropout's seeds, and its step
    the trainer's.
    """

    name: str
    build: Callable[[Any, nn.Module], nn.Module]
    loss: Loss
    ours: bool = False
    by_trainer: bool = False
    compiled: bool = False
    gradients: Callable[[nn.Module, Any], dict[str, Tensor]] | None = None


def candidates(case: ModelCase, on_gpu: bool) -> list[Candidate]:
    def build_ours(config: Any, source: nn.Module) -> nn.Module:
        model = models.build(config)
        model.load_state_dict(source.state_dict())
        return model

    ours = Candidate("auto" if on_gpu else "cpu", build_ours, _our_loss, ours=True, by_trainer=True)
    theirs = Candidate("transformers", _transformers, _their_loss, gradients=_their_gradients)
    patched = replace(theirs, name="patched", build=_patched, ours=True)
    others = [patched, theirs, Candidate("plain", _plain, lambda model, batch: model(**batch))]
    compiled = [replace(c, name=f"{c.name}-compiled", compiled=True) for c in ([ours] if on_gpu else []) + others]
    return [ours, *others, *compiled]


def check_candidates(names: list[str] | None, cases: list[ModelCase], on_gpu: bool) -> None:
    """Raises ValueError if no case has a candidate of one of the names."""
    known = dict.fromkeys(c.name for case in cases for c in candidates(case, on_gpu))
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise ValueError(f"--candidate takes {', '.join(known)} here, not {', '.join(unknown)}")


def _our_loss(model: nn.Module, batch: Batch, seeds: Tensor | None = None) -> Tensor:
    if "labels" not in batch:
        return model(batch["tokens"], targets=batch["targets"], seeds=seeds).loss
    rest = {name: batch[name] for name in ("mlm_positions", "mlm_targets")}
    labels = {"next_sentence_labels": batch["labels"]}
    return model(batch["tokens"], batch["segments"], **rest, **labels, seeds=seeds).loss


def _plain(config: Any, source: nn.Module) -> nn.Module:
    model = plain(config)
    model.load_state_dict(source.state_dict())
    return model


def _transformers(config: Any, source: nn.Module) -> nn.Module:
    """Builds transformers' model in its fastest form: BERT with SDPA. Its GPT-1 has only an attention of its own."""
    transformers = package("transformers")
    values = hf.export_config(config)
    if isinstance(config, GPT1Config):
        model = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**values))
    else:
        model = transformers.BertForPreTraining(transformers.BertConfig(**values, attn_implementation="sdpa"))
    missing, unexpected = model.load_state_dict(hf.export_weights(source), strict=False)
    if unexpected or any("tokens_embed" in name or "word_embeddings" in name for name in missing):
        raise Unavailable(f"its weights have other names in this version: {unexpected or missing}")
    return model


def _patched(config: Any, source: nn.Module) -> nn.Module:
    model = _transformers(config, source)
    fastlm.patch(model)
    return model


def _their_loss(model: nn.Module, batch: Batch) -> Tensor:
    if "labels" not in batch:
        return model(input_ids=batch["tokens"], labels=batch["tokens"]).loss
    labels = torch.full_like(batch["tokens"], -100).scatter(1, batch["mlm_positions"], batch["mlm_targets"])
    ids = {"input_ids": batch["tokens"], "token_type_ids": batch["segments"]}
    return model(**ids, labels=labels, next_sentence_label=batch["labels"]).loss


def _their_gradients(model: nn.Module, config: Any) -> dict[str, Tensor]:
    return hf.import_weights({name: p.grad for name, p in model.named_parameters()}, config)


# Checks and times -------------------------------------------------------------------------------------------------


def run_model(case: ModelCase, bench: Bench) -> Iterator[Record]:
    """Yields the records of one model and shape, candidate by candidate."""
    torch.backends.cuda.enable_cudnn_sdp(False)  # it rounds dropout to sixteenths
    torch.manual_seed(SEED)
    source = models.build(case.config, backend="reference").to(bench.device).train()
    generator = torch.Generator(bench.device).manual_seed(SEED)
    check = ModelCheck(case, source, case.inputs(generator, 2), bench)
    batches = [case.inputs(generator, case.batch) for _ in range(SETS)]
    for candidate in candidates(case, bench.clock.on_gpu):
        if bench.candidates and candidate.name not in bench.candidates:
            continue
        if bench.late():
            yield _record(case, bench, candidate, status="skipped", reason="out of time")
            continue
        if candidate.compiled and not bench.clock.on_gpu:
            yield _record(case, bench, candidate, status="skipped", reason="not compiled on a CPU: it takes minutes")
            continue
        yield _guarded(case, bench, candidate, check, batches)
        gc.collect()
        torch._dynamo.reset()
        if bench.clock.on_gpu:
            torch.cuda.empty_cache()


def _guarded(case: ModelCase, bench: Bench, candidate: Candidate, check: ModelCheck, batches: list[Batch]) -> Record:
    try:
        with quiet():
            error = check(candidate)
            step = training_step(case, candidate, check.source, bench)
            extra = bench.clock.extra_bytes(lambda: step(batches[0]))
            samples = bench.clock.steps(step, lambda i: batches[i % len(batches)])
        return _record(case, bench, candidate, status="timed", samples_us=samples, error=error, extra_bytes=extra)
    except Unavailable as reason:
        return _record(case, bench, candidate, status="skipped", reason=str(reason))
    except Refused as reason:
        return _record(case, bench, candidate, status="refused", reason=str(reason))
    except Exception as error:  # other packages may raise any exception
        status, reason = explain(error)
        return _record(case, bench, candidate, status=status, reason=reason)


class ModelCheck:
    """Compares candidates with fastlm's reference backend in float32 on a few sequences, with and without dropout."""

    def __init__(self, case: ModelCase, source: nn.Module, batch: Batch, bench: Bench):
        self.case, self.source, self.batch, self.bench = case, source, batch, bench
        self.seeds = torch.arange(1, 1 + source.dropout_sites, device=bench.device)
        self._exact: dict[bool, tuple[Tensor, dict[str, Tensor]]] = {}

    def __call__(self, candidate: Candidate) -> float:
        """Returns the relative difference of the gradients; raises Refused if it, or that of the loss, is too large."""
        config = self.case.config if candidate.by_trainer else _with_dropout(self.case.config, 0.0)
        model = candidate.build(config, self.source).to(self.bench.device).train()
        loss = self._loss(candidate, model)
        named = {name: p.grad for name, p in model.named_parameters()}
        gradients = named if candidate.gradients is None else candidate.gradients(model, config)
        return self._checked_error(loss, gradients, *self._reference(candidate.by_trainer))

    def _loss(self, candidate: Candidate, model: nn.Module) -> Tensor:
        with autocast(self.bench):
            seeds = {"seeds": self.seeds} if candidate.by_trainer else {}
            loss = candidate.loss(model, self.batch, **seeds)
        loss.backward()
        return loss.detach()

    def _reference(self, dropout: bool) -> tuple[Tensor, dict[str, Tensor]]:
        if dropout not in self._exact:
            config = self.case.config if dropout else _with_dropout(self.case.config, 0.0)
            model = models.build(config, backend="reference").to(self.bench.device).train()
            model.load_state_dict(self.source.state_dict())
            loss = _our_loss(model, self.batch, self.seeds)
            loss.backward()
            self._exact[dropout] = loss.detach(), {name: p.grad for name, p in model.named_parameters()}
        return self._exact[dropout]

    def _checked_error(
        self, loss: Tensor, gradients: dict[str, Tensor], exact: Tensor, wanted: dict[str, Tensor]
    ) -> float:
        loss_bound, bound = TOLERANCES[self.bench.dtype]
        off = ((loss - exact).abs() / exact).item()
        if not off <= loss_bound:
            raise Refused(f"wrong: its loss is {loss.item():.6g}, not {exact.item():.6g}")
        difference = sum((gradients[name].double() - g.double()).square().sum().item() for name, g in wanted.items())
        error = (difference / sum(g.double().square().sum().item() for g in wanted.values())) ** 0.5
        if not error <= bound:
            raise Refused(f"wrong: its gradients differ by {error:.3g} of their norm, over {bound:g}")
        return error


def _with_dropout(config: Any, p: float) -> Any:
    return replace(config, dropout=p, attention_dropout=p, embedding_dropout=p)


def autocast(bench: Bench) -> torch.autocast:
    return torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.dtype == torch.bfloat16)


def training_step(case: ModelCase, candidate: Candidate, source: nn.Module, bench: Bench) -> Callable[[Batch], None]:
    """Returns the step that users of a candidate run: fastlm's trainer, or the model with torch's fused AdamW."""
    if candidate.by_trainer:
        return _trainer_step(case, candidate, source, bench)
    model = candidate.build(case.config, source).to(bench.device).train()
    if candidate.compiled:
        model = torch.compile(model, dynamic=False)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01, fused=True)

    def step(batch: Batch) -> None:
        with autocast(bench):
            value = candidate.loss(model, batch)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


class _GivenBatches(Task):
    """Gives the trainer the model of a case and ready batches, so that the trainer's own step can be timed."""

    def __init__(self, build: Callable[[], nn.Module], batches: list[Batch]):
        self._build = build
        self.batches, self.batches_per_epoch = batches, len(batches)

    def prepare(self, folder: Path, notify: Notify) -> None:
        pass

    def dataset(self, split: str, length: int, batch_size: int, seed: int) -> _GivenBatches:
        return self

    def batch(self, step: int) -> Batch:
        return self.batches[step % len(self.batches)]

    def tokens(self, batch: Batch) -> int:
        return batch["tokens"].numel()

    def build(self, backend: str) -> nn.Module:
        return self._build()

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        return (_our_loss(model, batch),)

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        return {"loss": sum(self.losses(model, batch)[0].item() for batch in batches)}


def _trainer_step(case: ModelCase, candidate: Candidate, source: nn.Module, bench: Bench) -> Callable[[Batch], None]:
    """Returns a function that makes the trainer's next update. It ignores its argument: the trainer loads batches."""
    generator = torch.Generator().manual_seed(SEED)
    batches = [case.inputs(generator, case.batch) for _ in range(SETS)]
    task = _GivenBatches(lambda: candidate.build(case.config, source), batches)
    epsilon, length = 1e-6 if case.is_bert else 1e-8, ((1.0, case.length),)
    config = TrainConfig(steps=1, phases=length, batch_size=case.batch, learning_rate=1e-4, epsilon=epsilon,
                         bias_correction=not case.is_bert)  # fmt: skip
    precision = "bf16" if bench.dtype == torch.bfloat16 else "fp32"
    trainer = Trainer(task, config, Plan(1 << 30, 0, bench.device.type, precision, {}))
    if candidate.compiled:
        for block in trainer.model.blocks:  # one graph serves all blocks; the other layers are fused ops already
            block.compile(fullgraph=True, dynamic=False)
    steps = itertools.count()

    def step(batch: Batch) -> None:
        trainer.update(next(steps))

    return step


def _record(case: ModelCase, bench: Bench, candidate: Candidate, **outcome: Any) -> Record:
    flops, peak = case.flops(), machine.peak_flops()
    lower_bound, _ = bench.limits.lower_bound(0, flops)
    record = Record(
        kind="model",
        name=case.name,
        shape=case.shape,
        dtype=str(bench.dtype).removeprefix("torch."),
        pass_="step",
        candidate=candidate.name,
        ours=candidate.ours,
        parameters={
            "batch": case.batch,
            "length": case.length,
            "dropout_p": case.config.dropout,
            "back_to_back": True,
        },
        flops=flops,
        lower_bound_us=round(lower_bound, 3),
        bound="matrix",
        tokens=case.batch * case.length,
        **outcome,
    )
    return record if peak is None or record.status != "timed" else replace(record, mfu=mfu(flops, record, peak))


def mfu(flops: int, record: Record, peak: float) -> float:
    """Returns the model FLOPs utilization, a fraction of the peak (Chowdhery et al. 2022, appendix B)."""
    return flops / (record.median_us * 1e-6) / peak
