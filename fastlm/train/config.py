"""What a pretraining run is: the options, their checks, and the papers' values as presets. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

# What may differ when a run is resumed: it changes no loss.
FREE = ("checkpoint_every", "checkpoint_seconds")


def _option(help: str, default: Any, **choices: Any) -> Any:
    return field(default=default, metadata={"help": help, **choices})


@dataclass(frozen=True)
class PretrainConfig:
    """The options of a run. With the machine's threads, all that its losses depend on.

    The length of a run is one of `steps`, `minutes` (turned into steps once, by a measurement) and `epochs`.
    Raises ValueError, naming the option, for values that make no sense.
    """

    model: str = _option("model preset, e.g. gpt1_small or bert_base", "gpt1_small")
    data: tuple[str, ...] = _option("text files: .txt, .txt.xz, .txt.gz, .jsonl (none: the bundled novels)", ())
    document: str = _option("what ends a document in a .txt", "blank-line", choices=("blank-line", "file"))
    validation_fraction: float = _option("part of the documents held out for validation", 0.05)
    vocab_size: int = _option("entries of the tokenizer that is trained on the data", 4096)
    steps: int | None = _option("length of the run in updates", None)
    minutes: float | None = _option("length of the run in minutes, turned into steps by timing the first few", None)
    epochs: float | None = _option("length of the run in passes over the data", None)
    phases: tuple[tuple[float, int], ...] = _option("sequence lengths, as FRACTION:LENGTH,...", ((1.0, 128),))
    batch_size: int = _option("sequences an update", 16)
    accumulation: int = _option("parts that a batch is split into, one after the other", 1)
    optimizer: str = _option("adamw (GPT-1) or bert (no bias correction)", "adamw", choices=("adamw", "bert"))
    learning_rate: float = _option("peak of the learning rate", 2.5e-4)
    warmup: int = _option("updates of linear warm-up (at most a tenth of the run)", 2000)
    decay: str = _option("shape of the decay to 0", "cosine", choices=("cosine", "linear"))
    beta1: float = _option("decay of Adam's first moment", 0.9)
    beta2: float = _option("decay of Adam's second moment", 0.999)
    epsilon: float = _option("Adam's epsilon", 1e-8)
    weight_decay: float = _option("decoupled decay of the matrices, embeddings included", 0.01)
    clip: float = _option("largest global norm of the gradient", 1.0)
    dropout: float = _option("dropout of embeddings, residuals and attention", 0.1)
    precision: str = _option("auto: bf16 autocast where it is faster", "auto", choices=("auto", "fp32", "bf16"))
    device: str = _option("auto: CUDA if there is one", "auto", choices=("auto", "cpu", "cuda"))
    backend: str = _option("what serves the ops", "auto", choices=("auto", "reference", "triton", "cuda"))
    seed: int = _option("of weights, dropout and data order", 0)
    validate_every: int = _option("updates between validations", 1000)
    validation_batches: int = _option("batches of a validation during the run; the last one takes all", 16)
    checkpoint_every: int = _option("updates between checkpoints", 1000)
    checkpoint_seconds: float = _option("seconds between checkpoints, whichever is first", 600.0)

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "vocab_size", "validate_every", "validation_batches"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("learning_rate", "epsilon", "clip", "checkpoint_every", "checkpoint_seconds"):
            _require(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        for name in ("dropout", "beta1", "beta2", "weight_decay"):
            _require(0 <= getattr(self, name) < 1, name, "at least 0 and below 1", getattr(self, name))
        for name in ("steps", "minutes", "epochs"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, "above 0", value)
        _require(
            0 < self.validation_fraction < 1, "validation_fraction", "above 0 and below 1", self.validation_fraction
        )
        _require(self.warmup >= 0, "warmup", "at least 0", self.warmup)
        _require(0 <= self.seed < 1 << 63, "seed", "at least 0 and below 2^63", self.seed)
        _require(self.batch_size % self.accumulation == 0, "accumulation", f"a divisor of batch_size {self.batch_size}",
                 self.accumulation)  # fmt: skip
        lengths_given = [name for name in ("steps", "minutes", "epochs") if getattr(self, name) is not None]
        _require(len(lengths_given) == 1, "steps, minutes, epochs", "exactly one of them", lengths_given)
        _require(all(share >= 0 for share, _ in self.phases), "phases", "fractions of at least 0", self.phases)
        total = sum(fraction for fraction, _ in self.phases)
        _require(abs(total - 1) < 1e-6, "phases", "fractions that sum to 1", total)
        _require(all(length >= 2 for _, length in self.phases), "phases", "sequence lengths of at least 2", self.phases)
        for name, choices in CHOICES.items():
            _require(getattr(self, name) in choices, name, f"one of {', '.join(choices)}", getattr(self, name))

    def with_length(self, **lengths: Any) -> PretrainConfig:
        """This configuration with another of steps, minutes and epochs."""
        return replace(self, **{"steps": None, "minutes": None, "epochs": None, **lengths})

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @staticmethod
    def from_json(values: dict[str, Any]) -> PretrainConfig:
        phases = tuple((fraction, length) for fraction, length in values["phases"])
        return PretrainConfig(**{**values, "data": tuple(values["data"]), "phases": phases})


CHOICES = {f.name: f.metadata["choices"] for f in fields(PretrainConfig) if "choices" in f.metadata}


def differences(config: PretrainConfig, recorded: PretrainConfig) -> list[str]:
    """The fields in which two runs differ, each with both values; those that change no loss do not count."""
    pairs = [(f.name, getattr(config, f.name), getattr(recorded, f.name)) for f in fields(config) if f.name not in FREE]
    return [f"{name} (now {new!r}, there {old!r})" for name, new, old in pairs if new != old]


def run_hash(config: PretrainConfig, plan: dict[str, Any]) -> str:
    """sha256 of all that makes a run what it is; its checkpoints carry it."""
    bound = {name: value for name, value in config.to_json().items() if name not in FREE}
    return hashlib.sha256(json.dumps({"config": bound, "plan": plan}, sort_keys=True).encode()).hexdigest()


def _require(condition: bool, name: str, expected: str, given: Any) -> None:
    if not condition:
        raise ValueError(f"{name}: {expected} expected, got {given!r}")


_GPT1 = PretrainConfig(  # Radford et al. 2018, section 4.1
    model="gpt1", vocab_size=40478, epochs=100, phases=((1.0, 512),), batch_size=64, accumulation=1,
    optimizer="adamw", learning_rate=2.5e-4, warmup=2000, decay="cosine", epsilon=1e-8, dropout=0.1,
)  # fmt: skip
_BERT = PretrainConfig(  # Devlin et al. 2019, appendix A.2
    model="bert_base", vocab_size=30522, steps=1_000_000, phases=((0.9, 128), (0.1, 512)), batch_size=256,
    accumulation=4, optimizer="bert", learning_rate=1e-4, warmup=10_000, decay="linear", epsilon=1e-6, dropout=0.1,
)  # fmt: skip
_SMALL = {"validate_every": 200, "checkpoint_every": 1_000_000, "checkpoint_seconds": 30.0}

# The papers' values; for the small models, values that learn most in minutes on a CPU.
PRETRAIN_PRESETS = {
    "gpt1": _GPT1,
    "bert_base": _BERT,
    "bert_large": replace(_BERT, model="bert_large", accumulation=8),
    "gpt1_small": replace(
        _GPT1.with_length(minutes=3.0), model="gpt1_small", vocab_size=4096, phases=((1.0, 128),), batch_size=8,
        learning_rate=5e-4, warmup=100, beta2=0.99, dropout=0.0, **_SMALL,
    ),
    "bert_small": replace(
        _BERT.with_length(minutes=3.0), model="bert_small", vocab_size=4096, phases=((1.0, 64),), batch_size=16,
        accumulation=1, learning_rate=5e-4, warmup=100, beta2=0.99, dropout=0.0, **_SMALL,
    ),
    "gpt1_tiny": replace(
        _GPT1.with_length(steps=20), model="gpt1_tiny", vocab_size=512, phases=((1.0, 16),), batch_size=4,
        learning_rate=1e-3, warmup=2, validate_every=10, validation_batches=2,
    ),
    "bert_tiny": replace(
        _BERT.with_length(steps=20), model="bert_tiny", vocab_size=512, phases=((1.0, 32),), batch_size=4,
        accumulation=1, learning_rate=1e-3, warmup=2, validate_every=10, validation_batches=2,
    ),
}  # fmt: skip


def resolve_model(name: str, *, cuda: bool) -> tuple[str, str | None]:
    """The preset that `--model` names, and a sentence if the machine chose it.

    "gpt1" and "bert" are the paper's size on a CUDA machine and the small one on a CPU; "gpt1_full" and every name of
    PRETRAIN_PRESETS with a size mean just that.
    """
    if name in ("gpt1", "bert"):
        small, full = f"{name}_small", {"gpt1": "gpt1", "bert": "bert_base"}[name]
        asked = {"gpt1": "gpt1_full", "bert": "bert_base"}[name]
        if cuda:
            return (
                full,
                f"model {asked}: the paper's size, since there is a CUDA device (--model {small} for the small one)",
            )
        return small, f"model {small}, since there is no CUDA device (--model {asked} for the paper's size)"
    preset = "gpt1" if name == "gpt1_full" else name
    if preset not in PRETRAIN_PRESETS:
        known = ["gpt1", "bert", "gpt1_full", *sorted(set(PRETRAIN_PRESETS) - {"gpt1"})]
        raise ValueError(f"model: one of {', '.join(known)} expected, got {name!r}")
    return preset, None
