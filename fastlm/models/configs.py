"""The models' configurations and the papers' sizes. Imports no torch, since recipes and `--help` do without it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from fastlm._options import INTEGERS_END, list_problems, option
from fastlm.keep import keep_count


@dataclass(frozen=True)
class ModelConfig:
    """Holds the options that all models have. Defaults are the papers' BASE size.

    context is the longest sequence S, hidden is E, intermediate is I; dropouts are probabilities. Raises ValueError or
    TypeError, naming the field, for a value that no model can have.
    """

    model_type: ClassVar[str]

    vocab_size: int
    context: int = option("longest sequence", 512)
    layers: int = option("blocks", 12)
    hidden: int = option("width of the hidden states", 768)
    heads: int = option("attention heads", 12)
    intermediate: int = option("width of the MLPs", 3072)
    dropout: float = option("dropout of the residual branches, and the default of the other dropouts", 0.1)
    attention_dropout: float = option("dropout of attention's weights", 0.1)
    embedding_dropout: float = option("dropout of the embedding sum", 0.1)
    eps: float = option("epsilon of the layer norms", 1e-5)
    initializer_range: float = option("standard deviation of a fresh matrix", 0.02)

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type == "int" and (type(value) is not int or not 1 <= value < INTEGERS_END):
                raise ValueError(f"{f.name} must be an integer of at least 1 and below 2^31, got {value!r}")
            if f.type == "float" and (type(value) not in (int, float) or not 0 <= value < math.inf):
                raise ValueError(f"{f.name} must be a number of at least 0, and finite, got {value!r}")
        if self.hidden % self.heads:
            raise ValueError(f"hidden must be a multiple of heads, got hidden {self.hidden} and heads {self.heads}")
        for name in ("dropout", "attention_dropout", "embedding_dropout"):
            keep_count(getattr(self, name), name)

    def to_json(self) -> dict[str, Any]:
        """Returns the content of config.json."""
        return {"model_type": self.model_type, **asdict(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Returns the configuration that `to_json` describes. Raises ValueError for missing or unknown names."""
        given, known = set(values), {"model_type", *(f.name for f in fields(cls))}
        if given != known:
            text = list_problems(missing=known - given, unknown=given - known)
            hint = "a folder of transformers' is loaded by fastlm.integrations.transformers.from_pretrained"
            raise ValueError(f"not the configuration of a fastlm {cls.model_type}: {text} ({hint})")
        return cls(**{name: value for name, value in values.items() if name != "model_type"})

    def matrix_weights(self) -> int:
        """Returns the number of weights in the embeddings and in the blocks' matrices: almost all of the parameters."""
        rows = self.vocab_size + self.context + getattr(self, "segments", 0)
        return rows * self.hidden + self.layers * self.block_weights()

    def block_weights(self) -> int:
        """Returns the number of weights in a block's matrices: 4 E^2 (attention) + 2 E I (MLP)."""
        return 4 * self.hidden**2 + 2 * self.hidden * self.intermediate

    def block_flops_per_token(self, keys: float) -> int:
        """Returns floating-point operations per token of all blocks, forward and backward, if a query sees `keys` keys.

        A product of (m, k) and (k, n) takes 2mkn operations, and so does each of its two gradients: 6 per weight and
        token. q k^T and p v each take E multiplications per key.
        """
        return round(6 * self.layers * (self.block_weights() + 2 * keys * self.hidden))


@dataclass(frozen=True)
class GPT1Config(ModelConfig):
    """Configures GPT-1; defaults are those of Radford et al. 2018, section 4.1, "Model specifications".

    The vocabulary is 40,000 merges and the 478 symbols they start from.
    """

    model_type: ClassVar[str] = "gpt1"

    vocab_size: int = 40478

    def flops_per_token(self, sequence_length: int) -> int:
        """Returns floating-point operations per token of a training step.

            6 L (4 E^2 + 2 E I)     weights of the blocks
            6 L 2 E (S + 1) / 2     q k^T and p v; a query sees (S + 1) / 2 keys on average
            6 V E                   head

        Look-ups, layer norms, GELU and softmax are not counted.
        """
        return self.block_flops_per_token((sequence_length + 1) / 2) + 6 * self.vocab_size * self.hidden


@dataclass(frozen=True)
class BERTConfig(ModelConfig):
    """Configures BERT; defaults are BASE of Devlin et al. 2019, section 3, "Model architecture".

    `segments` is the number of segment ids. `gelu` is "tanh", as in the original code, or "none", the exact erf form
    that Hugging Face's weights were made for.
    """

    model_type: ClassVar[str] = "bert"

    vocab_size: int = 30522
    eps: float = option("epsilon of the layer norms", 1e-12)
    segments: int = option("number of segment ids", 2)
    gelu: str = option('"tanh", or "none" for the exact erf form', "tanh")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gelu not in ("tanh", "none"):
            raise ValueError(f"gelu must be 'tanh' or 'none' (the exact erf), got {self.gelu!r}")

    def flops_per_token(self, sequence_length: int, predicted_fraction: float = 0.15) -> int:
        """Returns floating-point operations per token of a training step.

            6 L (4 E^2 + 2 E I)     weights of the blocks
            6 L 2 E S               q k^T and p v
            6 f (E^2 + V E)         masked-LM head, on the fraction f of the positions

        Pooler and next-sentence head (one position per sequence), look-ups, layer norms, GELU and softmax are not
        counted.
        """
        head = self.hidden**2 + self.vocab_size * self.hidden
        return self.block_flops_per_token(sequence_length) + round(6 * predicted_fraction * head)


# initializer_range is 0.02 sqrt(768 / 256): x W^T then has the same variance as with 0.02 and a width of 768.
_SMALL = {"vocab_size": 4096, "layers": 4, "hidden": 256, "heads": 4, "intermediate": 1024, "initializer_range": 0.035}
_MINI = {
    "vocab_size": 1024, "context": 64, "layers": 2, "hidden": 128, "heads": 2, "intermediate": 512,
    "initializer_range": 0.05,
}  # fmt: skip
_TINY = {"vocab_size": 512, "context": 64, "layers": 2, "hidden": 64, "heads": 2, "intermediate": 256}

PRESETS: dict[str, ModelConfig] = {
    "gpt1": GPT1Config(),
    "gpt1_small": GPT1Config(**_SMALL, context=128),
    "gpt1_mini": GPT1Config(**_MINI),
    "gpt1_tiny": GPT1Config(**_TINY),
    "bert_base": BERTConfig(),
    "bert_large": BERTConfig(layers=24, hidden=1024, heads=16, intermediate=4096),
    "bert_small": BERTConfig(**_SMALL, context=64),
    "bert_mini": BERTConfig(**_MINI),
    "bert_tiny": BERTConfig(**_TINY),
}
