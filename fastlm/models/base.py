"""What GPT1 and BERT share: the checks of a configuration, the seeds of a forward, saving and loading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from fastlm.dropout import draw_seeds, keep_count
from fastlm.files import named_tensors
from fastlm.models import files
from fastlm.ops import _checks

SITES_PER_BLOCK = 3  # dropout: attention's probabilities, and before either residual


@dataclass(frozen=True)
class ModelConfig:
    """The part of a configuration that both models have; the papers' BASE size.

    context is the longest sequence S; hidden E; intermediate I; the dropouts are probabilities. Raises ValueError
    or TypeError, naming the field, for values that make no model.
    """

    model_type: ClassVar[str]

    vocab_size: int
    context: int = 512
    layers: int = 12
    hidden: int = 768
    heads: int = 12
    intermediate: int = 3072
    dropout: float = 0.1
    attention_dropout: float = 0.1
    embedding_dropout: float = 0.1
    eps: float = 1e-5
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name} must be an integer of at least 1, got {value!r}")
            if field.type == "float" and (type(value) not in (int, float) or not value >= 0):
                raise ValueError(f"{field.name} must be a number of at least 0, got {value!r}")
        if self.hidden % self.heads:
            raise ValueError(f"hidden must be a multiple of heads, got hidden {self.hidden} and heads {self.heads}")
        for p in (self.dropout, self.attention_dropout, self.embedding_dropout):
            keep_count(p)

    def to_json(self) -> dict[str, Any]:
        return {"model_type": self.model_type, **asdict(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Raises ValueError where the names are not just those of `to_json`."""
        given, known = set(values), {"model_type", *(field.name for field in fields(cls))}
        if given != known:
            problems = {"missing": known - given, "unknown": given - known}
            text = "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in problems.items() if names)
            hint = "a folder of transformers' is loaded by fastlm.integrations.transformers.load"
            raise ValueError(f"not the configuration of a fastlm {cls.model_type}: {text} ({hint})")
        return cls(**{name: value for name, value in values.items() if name != "model_type"})

    def block_flops_per_token(self, keys: float) -> int:
        """Floating-point operations a token of all blocks, forward and backward, where a query sees `keys` keys.

        A product of (m, k) and (k, n) takes 2mkn, and its two gradients as much again each: 6 a weight and token.
        A block's weights are 4 E^2 (attention) + 2 E I (MLP); scores and context take E multiplications a key each.
        """
        weights = 4 * self.hidden**2 + 2 * self.hidden * self.intermediate
        return round(6 * self.layers * (weights + 2 * keys * self.hidden))


class Model(nn.Module):
    """Base of the models: a configuration, a backend for all ops, and a folder to be saved in."""

    config_class: ClassVar[type[ModelConfig]]

    def __init__(self, config: ModelConfig, backend: str = "auto"):
        super().__init__()
        if not isinstance(config, self.config_class):
            raise TypeError(f"config must be a {self.config_class.__name__}, got {type(config).__name__}")
        self.config, self.backend = config, backend

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors, each whole or not at all; a tied weight is stored once.

        Raises OSError where the disk is full or the folder cannot be written.
        """
        files.write(folder, self.config.to_json(), named_tensors(self))

    @classmethod
    def load(cls, folder: str | Path, backend: str = "auto") -> Self:
        """The model that `save` wrote, on the CPU, in the dtype it had.

        Raises FileNotFoundError, or ValueError for a truncated or foreign file; pickles are never loaded.
        """
        values = files.read_config(folder)
        if values.get("model_type") != cls.config_class.model_type:
            given = f"{values.get('model_type')!r}"
            raise ValueError(f"{folder}: a {cls.config_class.model_type} model expected, its config.json has {given}")
        try:
            config = cls.config_class.from_json(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{Path(folder) / files.CONFIG}: {error}") from error
        return cls.from_weights(config, files.read_weights(folder), backend, what=str(Path(folder) / files.WEIGHTS))

    @classmethod
    def from_weights(
        cls, config: ModelConfig, weights: dict[str, Tensor], backend: str = "auto", *, what: str = "weights"
    ) -> Self:
        """A model whose parameters are the given tensors, not copies. Raises ValueError, beginning with `what`."""
        with torch.device("meta"):
            model = cls(config, backend)
        files.assign_weights(model, weights, what)
        return model

    def site_seeds(self, seeds: Tensor | None) -> Sequence[Tensor | None]:
        """One seed for each dropout site: a view of `seeds`, of freshly drawn ones, or None where nothing is dropped.

        The sites are the embedding's, then block by block attention's, the first residual's and the second's.
        """
        config = self.config
        sites = 1 + SITES_PER_BLOCK * config.layers
        if seeds is not None and seeds.shape != (sites,):
            raise ValueError(f"seeds must have shape ({sites},), one a dropout site, got {tuple(seeds.shape)}")
        if not self.training or not (config.dropout or config.attention_dropout or config.embedding_dropout):
            return (None,) * sites
        if seeds is None:
            seeds = draw_seeds(sites, next(self.parameters()).device)
        return seeds.split(1)

    def check_tokens(self, tokens: Tensor) -> None:
        """(B, S) int64 with 1 <= S <= context, and on the CPU every one in the vocabulary."""
        name = type(self).__name__
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or not 1 <= tokens.shape[1] <= self.config.context:
            given = f"shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(f"{name}: tokens must be (B, S) with 1 <= S <= {self.config.context}, got {given}")
        self.check_ids("tokens", tokens, tokens.shape, self.config.vocab_size)

    def check_ids(
        self,
        name: str,
        ids: Tensor | None,
        shape: Sequence[int],
        end: int,
        *,
        ignore: int | None = None,
        dtype: torch.dtype = torch.int64,
    ) -> None:
        """None, or integers of this shape and dtype on the model's device; on the CPU, in [0, end) or `ignore`."""
        model = type(self).__name__
        _checks.integers(model, name, ids, next(self.parameters()), torch.Size(shape), dtype)
        _checks.in_range(model, name, ids, 0, end, ignore=ignore)
